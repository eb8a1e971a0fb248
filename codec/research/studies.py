"""Names of the studies and where they are; a study's module is imported when it is asked for."""

from importlib import import_module

from vbc.codec.research.run import Study

STUDIES: dict[str, str] = {
    "patch-vae": "patch_vae.tables:STUDY",
    "patch-maps": "patch_vae.maps:STUDY",
    "patch-probes": "patch_vae.probes:STUDY",
    "capacity": "patch_vae.capacity:STUDY",
    "pmi-merge": "pmi_merge:STUDY",
    "accounting": "accounting:STUDY",
    "beta-vae-frey": "beta_vae_faces.study:STUDY",
    "disentanglement": "disentanglement:STUDY",
    "vae-priors": "ssvae.prior_study:STUDY",
    "ssvae-32": "ssvae.crossover:STUDY_32",
    "ssvae-64": "ssvae.crossover:STUDY_64",
    "ssvae-sketch": "ssvae.sketch_study:STUDY",
    "ssvae-bits": "ssvae.bits_study:STUDY",
    "ssvae-latents": "ssvae.latents_study:STUDY",
    "tvae-dimension": "transformer_vae.dimension_study:STUDY",
    "tvae-table": "transformer_vae.table_study:STUDY",
    "tvae-pose": "transformer_vae.pose_study:STUDY",
    "tvae-bound": "transformer_vae.bound_study:STUDY",
    "tvae-coadaptation": "transformer_vae.coadaptation_study:STUDY",
    "noise-variance": "noise_variance:STUDY",
    "bfvae-toy": "bfvae.toy:STUDY",
    "bfvae-digits": "bfvae.digits:STUDY",
    "bfvae-lsr-gan": "bfvae.renderer:STUDY",
    "bfvae-objects": "bfvae.objects:STUDY",
    "transfer": "transfer:STUDY",
    "lsr-gan-mnist": "lsr_gan.study:STUDY_MNIST",
    "lsr-gan-cifar": "lsr_gan.study:STUDY_CIFAR",
    "photo-renderer": "photo_renderer.study:STUDY",
    "error-maps": "said.error_maps:STUDY",
    "said": "said.study:STUDY",
    "said-transfer": "said.transfer:STUDY",
}
"""From a study's name to "module:attribute", the module below `vbc.codec.research.systems`."""


def find_study(name: str) -> Study:
    """The study of a name. Raises KeyError where there is none."""
    module, attribute = STUDIES[name].split(":")
    study = getattr(import_module(f"vbc.codec.research.systems.{module}"), attribute)
    assert isinstance(study, Study), f"{name} is no study"
    return study
