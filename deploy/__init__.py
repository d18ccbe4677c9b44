"""What acts: the local platform, the controller, the scorer, the trainer and the notifier.

Knows ``schemas``, never ``streams``: the two meet only on topics.
"""
