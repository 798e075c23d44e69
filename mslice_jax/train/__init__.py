"""Training a sliceable network: the step, the loop, and what they keep on disk."""

from .checkpoints import CheckpointError as CheckpointError
from .checkpoints import Checkpoints as Checkpoints
from .checkpoints import Progress as Progress
from .devices import Placement as Placement
from .loop import Outcome as Outcome
from .loop import Watcher as Watcher
from .loop import Watchers as Watchers
from .loop import train as train
from .losses import Distillation as Distillation
from .losses import cross_entropy as cross_entropy
from .metrics import Evaluate as Evaluate
from .metrics import MetricsFile as MetricsFile
from .metrics import evaluate_on as evaluate_on
from .metrics import make_evaluate as make_evaluate
from .optimizers import cosine as cosine
from .optimizers import multi_step as multi_step
from .optimizers import sgd as sgd
from .partial import restore_narrow as restore_narrow
from .state import TrainState as TrainState
from .step import Batch as Batch
from .step import TrainStep as TrainStep
from .step import make_train_step as make_train_step
