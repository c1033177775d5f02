"""A cluster that runs Cilium, as far as being its peer needs: what it says of itself and what it has to be told."""
