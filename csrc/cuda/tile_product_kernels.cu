#include "cuda/tile_product.cuh"
