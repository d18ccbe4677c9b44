"""Every kind of detector, by name. Adding one is a file and a line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from pydantic import ValidationError

from detectors.base import Spec
from schemas.contracts import DetectorConfig
from schemas.errors import ConfigurationError

#: Kind to the module and class of its spec; modules are imported when a configuration first names them.
KINDS: dict[str, str] = {
    "loss-above-promise": "detectors.harm.promise_e:PromiseSpec",
    "risk-e": "detectors.harm.risk_e:RiskSpec",
    "paired-judge": "detectors.harm.compare_e:PairedJudgeSpec",
    "drift-e": "detectors.shift.drift_e:DriftESpec",
    "drift-e-blocks": "detectors.shift.drift_e_blocks:DriftEBlocksSpec",
    "psi": "detectors.shift.windowed_kinds:PsiSpec",
    "jensen-shannon": "detectors.shift.windowed_kinds:JensenShannonSpec",
    "hellinger": "detectors.shift.windowed_kinds:HellingerSpec",
    "wasserstein": "detectors.shift.windowed_kinds:WassersteinSpec",
    "ks": "detectors.shift.windowed_kinds:KsSpec",
    "cramer-von-mises": "detectors.shift.windowed_kinds:CramerVonMisesSpec",
    "chi-squared": "detectors.shift.windowed_kinds:ChiSquaredSpec",
    "fisher": "detectors.shift.windowed_kinds:FisherSpec",
    "categories": "detectors.shift.windowed_kinds:CategoriesSpec",
    "cusum": "detectors.shift.cusum:CusumSpec",
    "quality": "detectors.health.quality:QualitySpec",
    "freshness": "detectors.health.freshness:FreshnessSpec",
    "staleness": "detectors.health.freshness:StalenessSpec",
    "service-level": "detectors.health.service:ServiceSpec",
    "segment-gap": "detectors.groups.segment_gap:SegmentGapSpec",
    "segments": "detectors.groups.segments:SegmentsSpec",
    "cbpe": "detectors.expected.cbpe:CbpeSpec",
    "dle": "detectors.expected.dle:DleSpec",
    "adwin": "detectors.adapters.river_drift:AdwinSpec",
    "kswin": "detectors.adapters.river_drift:KswinSpec",
    "page-hinkley": "detectors.adapters.river_drift:PageHinkleySpec",
    "ddm": "detectors.adapters.river_errors:DdmSpec",
    "eddm": "detectors.adapters.river_errors:EddmSpec",
    "hddm-a": "detectors.adapters.river_errors:HddmASpec",
    "hddm-w": "detectors.adapters.river_errors:HddmWSpec",
    "river-drift": "detectors.adapters.river_drift:RiverDriftSpec",
    "mmd": "detectors.joint_shift.mmd:MmdSpec",
    "pca-reconstruction": "detectors.joint_shift.pca:PcaSpec",
    "classifier-two-sample": "detectors.joint_shift.classifier:ClassifierSpec",
    "robust-z": "detectors.outliers.robust_z:RobustZSpec",
    "mahalanobis": "detectors.outliers.mahalanobis:MahalanobisSpec",
    "isolation-forest": "detectors.outliers.isolation_forest:IsolationForestSpec",
    "half-space-trees": "detectors.outliers.half_space_trees:HalfSpaceTreesSpec",
    "river-anomaly": "detectors.adapters.river_anomaly:RiverAnomalySpec",
    "cvm-online": "detectors.adapters.alibi_drift:CvmOnlineSpec",
    "fet-online": "detectors.adapters.alibi_drift:FetOnlineSpec",
    "mmd-online": "detectors.adapters.alibi_drift:MmdOnlineSpec",
    "lsdd-online": "detectors.adapters.alibi_drift:LsddOnlineSpec",
    "alibi-isolation-forest": "detectors.adapters.alibi_outliers:AlibiIsolationForestSpec",
    "alibi-mahalanobis": "detectors.adapters.alibi_outliers:AlibiMahalanobisSpec",
}


@cache
def spec_class(kind: str) -> type[Spec]:
    """The spec of ``kind``. Raises ConfigurationError that lists what there is."""
    try:
        module, name = KINDS[kind].split(":")
    except KeyError:
        raise ConfigurationError(
            f"no detector of kind {kind!r}; there are: {', '.join(sorted(KINDS))}"
        ) from None
    found: type[Spec] = getattr(import_module(module), name)
    return found


def spec_for(config: DetectorConfig) -> Spec:
    """The spec a model's configuration asks for. Raises ConfigurationError naming the detector and each wrong option."""
    kind = spec_class(config.kind)
    if config.stream not in kind.streams:
        raise ConfigurationError(
            f"detector {config.name}: {config.kind} reads {', '.join(kind.streams)}, not {config.stream}"
        )
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        raise ConfigurationError(f"detector {config.name}: {error}") from error
