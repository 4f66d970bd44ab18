"""x"""
from .priors import *
