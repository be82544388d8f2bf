"""Keys of many users: who they are, what they may use, what they used.

`record` is a key as it is stored, `database` and `file` are where keys lie, `account` is what one
server process knows of a key that is in use, `gate` lets requests in, `ledger` writes down what
they used.
"""
