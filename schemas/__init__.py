"""What crosses a boundary: events, commands, facts, verdicts, topics, warehouse rows, settings, errors.

Every other package imports this one and it imports none of them, so two processes that never share code can still
agree on every byte they exchange.
"""
