"""Decodes audio with tensorflow-io; run by the interpreter of requirements-tfio.txt.

Imports nothing of slm_jax. Greets with one line of JSON on stdout, then answers requests until
stdin ends. All integers are little-endian:

  request:  uint64 n, n bytes (a whole audio file)
  answer:   uint8 0, uint32 rate, uint32 channels, uint64 frames, float32 [frames, channels]
       or:  uint8 1, uint64 n, n bytes (UTF-8, what went wrong)
"""

import json
import os
import re
import struct
import sys

# The protocol gets a descriptor of its own, so that no library's chatter on stdout breaks it.
replies = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)

# tensorflow_io first: an environment without it fails at once, not after TensorFlow has loaded.
# isort: off
import tensorflow_io as tfio  # noqa: E402
import tensorflow as tf  # noqa: E402
import numpy as np  # noqa: E402
# isort: on

RAM_FILE = "ram://audio"
FULL_SCALE = {tf.uint8: 128.0, tf.int16: 2.0**15, tf.int32: 2.0**31}


def decode(data):
    """Bytes of a file -> (float32 [frames, channels], rate). Raises what tensorflow-io raises."""
    with tf.io.gfile.GFile(RAM_FILE, "wb") as file:
        file.write(data)
    try:
        tensor = tfio.audio.AudioIOTensor(RAM_FILE)
        samples, rate = tensor.to_tensor().numpy(), int(tensor.rate)
    finally:
        tf.io.gfile.remove(RAM_FILE)
    if tensor.dtype != tf.float32:
        offset = 128.0 if tensor.dtype == tf.uint8 else 0.0
        samples = (samples.astype(np.float64) - offset) / FULL_SCALE[tensor.dtype]
    return np.ascontiguousarray(samples, "<f4"), rate


def answer(data):
    try:
        samples, rate = decode(data)
    except Exception as error:
        # TensorFlow wraps the sentence: "{{function_node ...}} sentence [Op:...] name: ".
        message = re.sub(r"\{\{.*?\}\} ?|\[Op:.*", "", str(error)).strip() or type(error).__name__
        message = message.replace(RAM_FILE, "the file").encode()
        return struct.pack("<BQ", 1, len(message)) + message
    frames, channels = samples.shape
    return struct.pack("<BIIQ", 0, rate, channels, frames) + samples.tobytes()


def main():
    versions = {"tensorflow": tf.__version__, "tensorflow_io": tfio.__version__}
    tfio.audio.AudioIOTensor  # noqa: B018 - loads the native library now, or fails now
    replies.write(json.dumps(versions).encode() + b"\n")
    replies.flush()
    while header := sys.stdin.buffer.read(8):
        (size,) = struct.unpack("<Q", header)
        replies.write(answer(sys.stdin.buffer.read(size)))
        replies.flush()


if __name__ == "__main__":
    main()
