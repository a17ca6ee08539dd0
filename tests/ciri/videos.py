"""Clips and video files for the tests of ciri.media and ciri.video_files."""

from fractions import Fraction

import av
import numpy as np
import torch


def smooth_clip(count=6, height=48, width=64, seed=0):
    """A clip that a codec can keep: large soft patches of every colour, another in each frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)


def mean_error(a, b):
    """Mean absolute difference in grey levels; two frames of ``smooth_clip`` differ by about 60."""
    return float((a - b).abs().mean() * 255)


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1(side)"}


def encode(
    path, rgb, tag=None, sound=None, sound_codec="aac", rate=24, shown=None, aspect=None, pixels="yuv420p", width=32
):
    """A video of one colour per frame by PyAV alone.

    tag: colour matrix; sound: int16 (n,) or (channels, n), at 8 kHz; shown: seconds of each frame, the first also the
    sound's; aspect: width of a pixel over its height.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = width, 16, pixels
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if tag:
            stream.codec_context.colorspace = tag
        if sound is not None:
            voice = container.add_stream(sound_codec, rate=8000, layout=LAYOUTS[sound.size // sound.shape[-1]])
        if shown:
            stream.codec_context.time_base = Fraction(1, 90000)
        for index, colour in enumerate(rgb):
            image = np.broadcast_to(np.uint8(colour), (16, width, 3)).copy()
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=tag)
            if shown:
                frame.pts, frame.time_base = round(shown[index] * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for start in range(0, sound.shape[-1], 800):
                samples = np.ascontiguousarray(sound[..., start : start + 800].reshape(-1, 800))
                block = av.AudioFrame.from_ndarray(samples, format="s16p", layout=voice.layout)
                block.sample_rate, block.time_base = 8000, Fraction(1, 8000)
                block.pts = start + (round(shown[0] * 8000) if shown else 0)
                container.mux(voice.encode(block))
            container.mux(voice.encode())
    return path


def turned_film(source, result):
    """The same MP4, with a note that players have to turn it clockwise by a right angle."""
    data = bytearray(source.read_bytes())
    # the display matrix of the track header: identity becomes a quarter turn
    matrix = data.index(b"tkhd") + 4 + 40
    one, turned = (1 << 16).to_bytes(4, "big"), (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big")
    zero, corner = bytes(4), (1 << 30).to_bytes(4, "big")
    assert data[matrix : matrix + 4] == one
    data[matrix : matrix + 36] = zero + one + zero + turned + zero + zero + zero + zero + corner
    result.write_bytes(data)


def pitch(path):
    """The strongest frequency of a file's sound, in Hz, and its length in seconds."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(np.float64)
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    strongest = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax()
    return strongest * rate / len(middle), len(samples) / rate


def two_tones(seconds=2):
    time = np.arange(8000 * seconds) / 8000
    return np.int16(9000 * np.sin(2 * np.pi * np.where(time < seconds / 2, 400, 1000) * time))


def times(path):
    """When each frame of a file is shown, in seconds."""
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


#: 12 frames in the first second, 24 in the next.
UNEVEN = [index / 12 for index in range(12)] + [1 + index / 24 for index in range(24)]


def cut_after(source, result, number):
    """The first bytes of a file, up to the end of a packet of its picture: what is left of a download that stopped."""
    with av.open(str(source)) as container:
        places = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    result.write_bytes(source.read_bytes()[: sum(places[number])])


def remuxed(source, result, change, **options):
    """The same packets in another file, each as ``change(packet, whether it is the last)`` leaves it."""
    with av.open(str(source)) as read, av.open(str(result), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.dts is not None]
        for packet in packets:
            change(packet, packet is packets[-1])
            packet.stream = stream
            written.mux(packet)
    return result
