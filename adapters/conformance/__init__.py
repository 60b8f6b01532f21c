"""The conformance suite checks what every adapter promises, on a stage small enough for a dense float64 reference.

`harness adapters check NAME` runs it for a registered adapter. In Python, `failures(check_adapter(MyAdapter()))` of
`adapters.conformance.all_checks` must be empty.
"""
