"""Networks in files: one file a network, which nothing has to be unpickled for.

* `archive`: the file, a zip of plain members, written at once or not at all.
* `arrays`: arrays as NumPy's .npy; `plain`: trees, calls and plans as JSON;
  `manifest`: what all files say of themselves.
* `exported`: a StableHLO program for each rate; `batch`, `names`: the free size and the
  names of its inputs. `programs`: they run where the model is not.
* `saving`: `save` and `load`, all of a network. `shipping`: `export`, some rates alone.
* `onnx`, `saved_model`: the forms of other libraries.
"""

from .archive import StorageError as StorageError
from .programs import Programs as Programs
from .saving import SaveWarning as SaveWarning
from .saving import load as load
from .saving import save as save
from .shipping import export as export
