"""The data of arXiv 2605.06387: competitions that it evaluates on, problems that it trains on, answers for a warm-up.

No data is shipped. Each file names hub repositories at fixed revisions and their licences; `data.NAME` names a local copy.
"""
