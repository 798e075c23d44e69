"""What each rate costs: parameters, floating-point operations, memory, latency."""

from .exponent import Exponent as Exponent
from .measure import count_parameters as count_parameters
from .measure import profile as profile
from .measure import profile_layers as profile_layers
from .record import Layer as Layer
from .record import Profile as Profile
from .record import RateProfile as RateProfile
from .saved import load as load
from .saved import save as save
