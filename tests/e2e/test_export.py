"""launch/export.py on a checkpoint with random weights; `transformers` loads what it writes."""

import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import tiny_job
import tokenizers
import torch
import transformers
from flax import nnx

from slm_jax import config
from slm_jax.interop import safetensors
from slm_jax.models.backbone import Backbone
from slm_jax.models.speech_lm import SpeechLM
from slm_jax.nn import tree
from slm_jax.paths import REPO
from slm_jax.training.checkpoint import Checkpoints, Store


def write_tokenizer(folder):
    folder.mkdir()
    vocab = {f"w{i}": i for i in range(tiny_job.VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    return folder


def save_run(folder, tokenizer):
    """A run of one checkpoint, every weight random; its job and its parameters."""
    text = tiny_job.gin(
        folder / "data", folder, **{"TrainJob.text_tokenizer": str(tokenizer / "tokenizer.json")}
    )
    job = config.loads(text)
    model = job.system.model
    abstract = tree.pure_params(nnx.eval_shape(lambda: SpeechLM(model, nnx.Rngs(0))))[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), abstract)
    state = {"params": params, "opt": {"none": jnp.zeros(1)}, "step": jnp.int32(1)}
    with Store(folder, Checkpoints()) as store:
        about = {"config": config.dump(job), "streams": {}, "data": ""}
        store.save(state, 1, about, force=True)
    return job, params


def test_a_run_becomes_a_folder_that_transformers_loads(tmp_path):
    job, params = save_run(tmp_path / "run", write_tokenizer(tmp_path / "tokenizer"))
    main = runpy.run_path(str(REPO / "launch" / "export.py"))["main"]
    out = tmp_path / "out"
    main([f"--checkpoint={tmp_path / 'run'}", f"--output={out}", "--dtype=float32"])

    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("w3 w7 w9 w30")["input_ids"]
    assert ids == [3, 7, 9, 30] and tokenizer.eos_token_id == 2
    backbone = job.system.model.backbone
    assert backbone.lora_rank
    graphdef, _ = tree.pure_params(nnx.eval_shape(lambda: Backbone(backbone, nnx.Rngs(0))))
    ours = tree.merge(graphdef, params["backbone"])
    want = ours.logits(ours(ours.embed(jnp.array([ids])), jnp.arange(4)[None])[0])
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor([ids])).logits, want, atol=1e-4)

    speech = safetensors.read(out / "speech.safetensors")
    own = {name: x for name, x in params.items() if name != "backbone"}
    assert speech.keys() == tree.flatten(own).keys()
    for name, value in tree.flatten(own).items():
        np.testing.assert_array_equal(speech[name], value)
    assert config.loads((out / "config.gin").read_text()) == job
