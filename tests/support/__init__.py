"""What tests share: the leak census, scripts in fresh interpreters, and functions that run in workers.

Light on purpose: workers import `support.jobs`, and must not meet pytest on the way. Nothing is imported here.
"""
