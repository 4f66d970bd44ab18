"""x"""
from .priors import *
from .network import *
from .closed_forms import *
from .programme import *
from .measures import *
from .patching import *
