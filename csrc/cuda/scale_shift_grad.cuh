#include "cuda/portable.cuh"
#include "cuda/scale_shift_grad.h"

namespace unlearnx::cuda {

/// A block takes `Channels` channels of one sample and shares out their positions among its threads. Threads that are
/// neighbours read neighbours: channels where these are fastest in memory, else positions.
template <typename T, int Channels, bool ChannelsFastest>
__global__ void __launch_bounds__(kThreads) scale_shift_rows_kernel(ScaleShiftArguments a, Compute<T>* rows) {
  using C = Compute<T>;
  constexpr int kShare = kThreads / Channels;
  UX_SHARED(C, scales, kThreads);
  UX_SHARED(C, shifts, kThreads);
  const int own = ChannelsFastest ? threadIdx.x % Channels : threadIdx.x / kShare;
  const int share = ChannelsFastest ? threadIdx.x / Channels : threadIdx.x % kShare;
  const int64_t strips = (a.channels + Channels - 1) / Channels;
  const int64_t sample = blockIdx.x / strips, channel = blockIdx.x % strips * Channels + own;
  C scale = 0, shift = 0;
  if (channel < a.channels) {
    const C mean = a.mean ? static_cast<const C*>(a.mean)[channel] : C(0);
    for (int64_t o = ChannelsFastest ? share : 0; o < a.outer; o += ChannelsFastest ? kShare : 1) {
      const int64_t first = ((sample * a.outer + o) * a.channels + channel) * a.inner;
      for (int64_t i = ChannelsFastest ? 0 : share; i < a.inner; i += ChannelsFastest ? 1 : kShare) {
        const C dy = convert<C>(static_cast<const T*>(a.dy)[first + i]);
        scale += dy * (convert<C>(static_cast<const T*>(a.x)[first + i]) - mean);
        shift += dy;
      }
    }
  }
  scales[own * kShare + share] = scale;
  shifts[own * kShare + share] = shift;
  __syncthreads();
  if (share != 0 || channel >= a.channels) return;
  for (int s = 1; s < kShare; ++s) {
    scale += scales[own * kShare + s];
    shift += shifts[own * kShare + s];
  }
  const int64_t place = sample * a.channels + channel;
  rows[place] = a.rstd ? scale * static_cast<const C*>(a.rstd)[channel] : scale;
  rows[a.samples * a.channels + place] = shift;
}

void scale_shift_rows(const ScaleShiftArguments& a, DType type, void* rows, cudaStream_t stream) {
  constexpr int kAcross = 32, kAlong = 8;  // channels of a block: a warp's width of them, or one for each warp
  const bool channels_fastest = a.inner == 1;
  const int64_t channels = channels_fastest ? kAcross : kAlong;
  const int64_t blocks = a.samples * ((a.channels + channels - 1) / channels);
  if (blocks == 0) return;
  const dim3 grid(static_cast<unsigned>(blocks));
  dispatch(type, [&](auto t) {
    using T = typename decltype(t)::type;
    auto* const out = static_cast<Compute<T>*>(rows);
    if (channels_fastest)
      UX_LAUNCH((scale_shift_rows_kernel<T, kAcross, true>), grid, dim3(kThreads), stream, a, out);
    else
      UX_LAUNCH((scale_shift_rows_kernel<T, kAlong, false>), grid, dim3(kThreads), stream, a, out);
  });
}

}  // namespace unlearnx::cuda
