"""The methods under test, one short file each; they import `harness`, which never imports them."""
