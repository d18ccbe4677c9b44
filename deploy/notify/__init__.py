"""Alerts to people: console, webhook, Slack, PagerDuty."""
