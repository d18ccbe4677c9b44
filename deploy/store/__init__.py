"""Where the bytes of model versions lie. The registry says what they mean; a store writes once, lists and hands out.

``base`` is the seam and ``directory`` and ``s3`` are the two sides of it, held to one contract by one class of tests;
``cache`` keeps what was read from afar; ``address`` opens what the settings name.
"""
