"""The text route: a user is a text that a reward model reads in front of the prompt. One file a method."""

from .base import TextConfig, TextState, TextUserModel, UserContext, context_messages

__all__ = ["TextConfig", "TextState", "TextUserModel", "UserContext", "context_messages"]
