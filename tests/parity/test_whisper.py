"""Our Whisper against transformers' on random weights, and against CTranslate2's on real ones."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from slm_jax.errors import UserError
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.whisper import Whisper

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEADS = ((0, 1), (1, 0), (1, 2))
TOLERANCE = 1e-4


@functools.cache
def reference():
    config = transformers.WhisperConfig(
        vocab_size=97,
        num_mel_bins=20,
        d_model=48,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=3,
        encoder_ffn_dim=80,
        decoder_ffn_dim=80,
        max_target_positions=40,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        suppress_tokens=[5, 6],
        begin_suppress_tokens=[7, 2],
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder.embed_positions" not in name:  # sinusoids
                weight.add_(torch.randn_like(weight) * 0.15)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whisper")
    reference().save_pretrained(path, max_shard_size="200KB")
    generation = {"alignment_heads": HEADS, "suppress_tokens": [5, 6]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return pure_params(Whisper.load(folder))


@pytest.fixture(scope="module")
def mel() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 20, 3000)).astype(np.float32)


@pytest.fixture(scope="module")
def encoded(ours, mel):
    graphdef, params = ours
    return jax.jit(lambda p, m: merge(graphdef, p).encoder(m))(params, mel)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(3, 97, (2, 11)).astype(np.int32)


def close(ours, theirs, tolerance=TOLERANCE):
    assert np.abs(np.asarray(ours) - theirs.detach().numpy()).max() <= tolerance


def test_config_comes_from_the_folder(ours):
    config = merge(*ours).config
    assert (config.encoder_layers, config.encoder_heads, config.decoder_heads) == (3, 4, 3)
    assert config.alignment_heads == HEADS
    assert config.suppress_ids == (5, 6) and config.suppress_ids_begin == (7, 2)


def test_encoder_states(encoded, mel):
    with torch.no_grad():
        out = reference().model.encoder(torch.from_numpy(mel), output_hidden_states=True)
    last, layers = encoded
    close(last, out.last_hidden_state)
    assert len(layers) == 4
    for i in range(3):  # the last entry of transformers is normed
        close(layers[i], out.hidden_states[i])


def test_short_input_uses_the_first_positions(ours, encoded, mel):
    graphdef, params = ours
    _, layers = jax.jit(lambda p, m: merge(graphdef, p).encoder(m))(params, mel[:, :, :800])
    assert layers.shape[2] == 400
    # Before any attention, all but the frame at the cut agree.
    assert np.abs(layers[0] - encoded[1][0, :, :400])[:, :-1].max() < 1e-5
    with pytest.raises(ValueError, match="30 s"):
        merge(graphdef, params).encoder(jnp.zeros((1, 20, 3002)))


def test_decoder_logits_and_cross_attention(ours, encoded, ids):
    graphdef, params = ours

    @jax.jit
    def run(params, last, ids):
        decoder = merge(graphdef, params).decoder
        out = decoder(ids, decoder.cross(last), heads=HEADS)
        return decoder.logits(out.hidden), out.scores

    logits, scores = run(params, encoded[0], ids)
    with torch.no_grad():
        out = reference()(
            encoder_outputs=(torch.from_numpy(np.array(encoded[0])),),
            decoder_input_ids=torch.from_numpy(ids).long(),
            output_attentions=True,
        )
    close(logits, out.logits)
    weights = jax.nn.softmax(scores, axis=-1)
    for slot, (layer, head) in enumerate(HEADS):
        close(weights[slot], out.cross_attentions[layer][:, head], 1e-6)


def test_cached_steps_equal_the_whole(ours, encoded, ids):
    graphdef, params = ours

    def whole(params, last, ids):
        decoder = merge(graphdef, params).decoder
        return decoder(ids, decoder.cross(last)).hidden

    @jax.jit
    def prompt(params, last, ids):
        decoder = merge(graphdef, params).decoder
        cross = decoder.cross(last)
        return decoder(ids, cross, cache=decoder.init_cache(2, 16)), cross

    @jax.jit
    def step(params, cross, ids, cache, start):
        return merge(graphdef, params).decoder(ids, cross, cache=cache, start=start)

    one = jax.jit(whole)(params, encoded[0], ids)
    out, cross = prompt(params, encoded[0], ids[:, :3])
    hidden = [out.hidden]
    for at in range(3, ids.shape[1]):
        out = step(params, cross, ids[:, at : at + 1], out.cache, at)
        hidden.append(out.hidden)
    other = jnp.concatenate(hidden, axis=1)
    assert np.abs(one - other).max() <= TOLERANCE


def test_openai_names_give_the_same_weights(folder, ours, tmp_path):
    hugging_face_to_openai = {
        "encoder.layers": "encoder.blocks",
        "decoder.layers": "decoder.blocks",
        "self_attn_layer_norm": "attn_ln",
        "encoder_attn_layer_norm": "cross_attn_ln",
        "final_layer_norm": "mlp_ln",
        "encoder.layer_norm": "encoder.ln_post",
        "decoder.layer_norm": "decoder.ln",
        "encoder_attn.": "cross_attn.",
        "self_attn.": "attn.",
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "out_proj": "out",
        "fc1": "mlp.0",
        "fc2": "mlp.2",
        "embed_tokens": "token_embedding",
        "embed_positions.weight": "positional_embedding",
    }
    tensors = {}
    for name, tensor in reference().model.state_dict().items():
        for theirs, openai in hugging_face_to_openai.items():
            name = name.replace(theirs, openai)
        tensors[name] = tensor.numpy()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"encoder_attention_heads": 4, "decoder_attention_heads": 3})
    )
    _, params = pure_params(Whisper.load(tmp_path))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, ours[1]))
    # Without a word about alignment heads: all of the upper half of the decoder.
    assert Whisper.load(tmp_path).config.alignment_heads == ((1, 0), (1, 1), (1, 2))


def test_foreign_and_partial_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.bin nor"):
        Whisper.load(tmp_path)
    tensors = {k: v.numpy() for k, v in reference().model.state_dict().items()}
    del tensors["decoder.layers.1.fc2.bias"]
    tensors["surprise"] = np.zeros(2, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"decoder\.layers\.1\.fc2\.bias.*surprise"):
        Whisper.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="not readable"):
        Whisper.load(tmp_path)


@pytest.mark.slow
def test_real_weights_hear_what_faster_whisper_hears():
    """Word error of greedy transcripts on the same weights: within one point of the reference."""
    faster_whisper = pytest.importorskip("faster_whisper")
    from data_pipelines import corpora, fetch
    from slm_jax.audio.decode import load
    from slm_jax.evaluation.wer import word_error_rate
    from slm_jax.tokenizers.asr import Asr

    folder = fetch.whisper_tiny_en()
    spoken, _ = corpora.read("asterisk", fetch.prompts("en"), corpora.Defaults())
    spoken = [u for u in spoken if len(u.text.split()) >= 4][::12]
    audios, texts = [load(u.audio) for u in spoken], [u.text for u in spoken]
    heard = [t.text for t in Asr(folder).transcribe(audios, word_times=False)]
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="float32")
    theirs = []
    for audio in audios:
        segments, _ = model.transcribe(
            audio,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            no_speech_threshold=None,
        )
        theirs.append("".join(segment.text for segment in segments).strip())
    ours, reference = word_error_rate(texts, heard), word_error_rate(texts, theirs)
    assert ours.words > 150
    assert abs(ours.wer - reference.wer) <= 0.01
