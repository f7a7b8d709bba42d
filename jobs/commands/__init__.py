"""One function per `fpe` command. They import torch, Ray and the pipeline only when called."""
