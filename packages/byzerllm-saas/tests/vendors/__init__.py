"""Local servers that play vendors, strict where the vendor is.

`server.py` is what they share, `suite.py` the tests that every provider passes; each other module
is one vendor. A vendor's own SDK is run against its server, too, so that the server is known to be
right.
"""
