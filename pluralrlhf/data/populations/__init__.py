"""Generated populations: users whose preferences are known, so that what can be learned from k pairs is known too."""
