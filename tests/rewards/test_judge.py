"""A judge as the end reward: strict answers, failed conversations never judged."""

from __future__ import annotations

from pluralrlhf.environments.base import Conversation, UserProfile
from pluralrlhf.rewards.judge import judge_reward, parse_yes_no


def test_answers_are_parsed_strictly():
    answers = ["yes", "Let me see.\nAnswer: No.", "YES!", "yes and no", "not yes", "", None]
    assert [parse_yes_no(a) for a in answers] == [1.0, 0.0, 1.0, None, None, None, None]


def test_failed_conversations_are_not_shown_to_the_judge():
    profile = UserProfile("u", 0, description="You like tea.")
    conversations = [Conversation(profile, [], ended=e) for e in ("recommended", "failed", "max_turns")]
    shown, logged = [], {}
    judge = judge_reward(lambda prompts: shown.extend(prompts) or ["yes", "perhaps"])
    assert judge(conversation=conversations, log_metric=logged.__setitem__) == [1.0, None, None]
    assert len(shown) == 2 and all("You like tea." in prompt for prompt in shown)
    assert logged == {"judge/invalid": 0.5}
