"""Parts of `experiments.elastic_serving`: the load, the server, what is measured."""
