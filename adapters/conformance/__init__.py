"""The conformance suite: what every adapter promises, checked on a stage so small that the truth can be written out.

`harness adapters check NAME` runs it for a registered adapter; in python, a third party's tests say
`failures(check_adapter(MyAdapter()))` of `adapters.conformance.suite`, which must be empty.
"""
