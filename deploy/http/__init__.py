"""The controller's HTTP API: who asks, what they may, what becomes of it on ``control``, and the pages that show it."""
