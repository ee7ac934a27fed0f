"""A stand-in for MongoDB Atlas: a real server of the MongoDB wire protocol, with Atlas Search on top.

`python -m tests.atlas --folder DIR` serves it. It is SecantusDB (storage, sessions, transactions, the query
language) with the commands and stages of Atlas Search registered in its tables. Tests rely on it rejecting what
Atlas rejects. Where a message or a code is Atlas's own, it comes from MongoDB's documentation or from the published
sources of mongod and mongot; what could not be found there is marked so in the docstring of what raises it.
"""
