"""EMformer: isotropic volumes from anisotropic electron-microscopy stacks."""
