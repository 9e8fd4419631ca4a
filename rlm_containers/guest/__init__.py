"""What runs inside the container.

The standard library and dill only, Python 3.9 and up, and nothing of the host's side: this
directory is copied into a bundle and mounted into containers under the name ``rlm_guest``.
"""
