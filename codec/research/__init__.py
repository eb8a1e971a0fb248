"""The research wing: the systems of five theses as working models that train in minutes (`codec study`).

May import `vbc.kernels`, `codec.files.image_io` and of `codec.train` what knows none of the codec's networks.
Nothing but `codec.study_cli`, the benches and the tests imports it; coding an image never loads it.
"""
