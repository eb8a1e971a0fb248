"""What a viewer shows of the first bytes of a file, ours and others': `python -m bench.progressive`.

Imports the codecs (`bench.rivals`), what all benches share (`bench.common`, `bench.markdown`) and the names
of the metrics (`bench.rate_distortion`); nothing of the report, which imports this.
"""
