"""EMformer in napari: readers, a sample, and panels that call the library. Nothing else in the package needs Qt."""
