#include "cuda/lissa_step.cuh"
