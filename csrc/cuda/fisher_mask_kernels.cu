#include "cuda/fisher_mask.cuh"
