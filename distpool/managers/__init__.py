"""Start, reach and stop processes. Managers know nothing of pools, refs or calls.

``interface`` says what a manager promises, ``local`` starts processes on this machine. One room per kind of machine or
engine.
"""
