"""Networks in files: one file a network, which nothing has to be unpickled for.

* `archive`: the file, a zip of plain members, written at once or not at all.
* `arrays`: arrays as NumPy's .npy; `plain`: trees, calls and plans as JSON.
* `programs`: what runs without the model: one StableHLO program for each rate.
* `saving`: `save` and `load`.
"""

from .archive import StorageError as StorageError
from .programs import Programs as Programs
from .programs import SaveWarning as SaveWarning
from .saving import load as load
from .saving import save as save
