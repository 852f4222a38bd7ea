"""Language models that can see: one shared class, one small file per backbone."""
