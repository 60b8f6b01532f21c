"""The conformance suite: what every adapter promises, checked on a stage small enough for a dense float64 reference.

`harness adapters check NAME` runs it for a registered adapter; in python, a third party's tests say
`failures(check_adapter(MyAdapter()))` of `adapters.conformance.all_checks`, which must be empty.
"""
