"""Damaged files and careless command lines, tried on the real commands: ``python -m tests.fuzz --minutes 10``.

Real files of every kind that is read are changed at the level of bytes and of structure; command lines and calls are
put together at random. Each input runs in a process of its own under a memory and a time limit, and what came of it is
sorted: it worked, it was refused in one line, or one of the faults that must never occur.
"""
