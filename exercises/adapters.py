"""Where the laws find a student's code: they call these names and no others.

As it stands, every function is taken from answers.py. If your design is another one (a class, a file per exercise,
other argument names), put a copy of this file beside your answers.py and write functions here that call yours.
"""

from answers import *  # noqa: F403
