"""Every kind of detector, by name. Adding one is a file and a line here."""

from __future__ import annotations

from importlib import import_module

from pydantic import ValidationError

from detectors.base import Spec
from schemas.contracts import DetectorConfig
from schemas.errors import ConfigurationError

#: Kind to the module and class of its spec; modules are imported when a configuration first names them.
KINDS: dict[str, str] = {
    "loss-above-promise": "detectors.promise_e:PromiseSpec",
    "risk-e": "detectors.risk_e:RiskSpec",
    "paired-judge": "detectors.compare_e:PairedJudgeSpec",
    "drift-e": "detectors.drift_e:DriftESpec",
    "drift-e-blocks": "detectors.drift_e_blocks:DriftEBlocksSpec",
    "psi": "detectors.windowed_kinds:PsiSpec",
    "jensen-shannon": "detectors.windowed_kinds:JensenShannonSpec",
    "hellinger": "detectors.windowed_kinds:HellingerSpec",
    "wasserstein": "detectors.windowed_kinds:WassersteinSpec",
    "ks": "detectors.windowed_kinds:KsSpec",
    "cramer-von-mises": "detectors.windowed_kinds:CramerVonMisesSpec",
    "chi-squared": "detectors.windowed_kinds:ChiSquaredSpec",
    "fisher": "detectors.windowed_kinds:FisherSpec",
    "categories": "detectors.windowed_kinds:CategoriesSpec",
    "cusum": "detectors.cusum:CusumSpec",
    "quality": "detectors.quality:QualitySpec",
    "freshness": "detectors.freshness:FreshnessSpec",
    "staleness": "detectors.freshness:StalenessSpec",
    "service-level": "detectors.service:ServiceSpec",
    "segment-gap": "detectors.segment_gap:SegmentGapSpec",
    "segments": "detectors.segments:SegmentsSpec",
    "cbpe": "detectors.cbpe:CbpeSpec",
    "dle": "detectors.dle:DleSpec",
    "adwin": "detectors.adapters.river_drift:AdwinSpec",
    "kswin": "detectors.adapters.river_drift:KswinSpec",
    "page-hinkley": "detectors.adapters.river_drift:PageHinkleySpec",
    "ddm": "detectors.adapters.river_errors:DdmSpec",
    "eddm": "detectors.adapters.river_errors:EddmSpec",
    "hddm-a": "detectors.adapters.river_errors:HddmASpec",
    "hddm-w": "detectors.adapters.river_errors:HddmWSpec",
    "river-drift": "detectors.adapters.river_drift:RiverDriftSpec",
    "mmd": "detectors.mmd:MmdSpec",
    "pca-reconstruction": "detectors.pca:PcaSpec",
    "classifier-two-sample": "detectors.classifier:ClassifierSpec",
    "robust-z": "detectors.robust_z:RobustZSpec",
    "mahalanobis": "detectors.mahalanobis:MahalanobisSpec",
    "isolation-forest": "detectors.isolation_forest:IsolationForestSpec",
    "half-space-trees": "detectors.adapters.river_anomaly:HalfSpaceTreesSpec",
    "river-anomaly": "detectors.adapters.river_anomaly:RiverAnomalySpec",
    "cvm-online": "detectors.adapters.alibi_drift:CvmOnlineSpec",
    "fet-online": "detectors.adapters.alibi_drift:FetOnlineSpec",
    "mmd-online": "detectors.adapters.alibi_drift:MmdOnlineSpec",
    "lsdd-online": "detectors.adapters.alibi_drift:LsddOnlineSpec",
    "alibi-isolation-forest": "detectors.adapters.alibi_outliers:AlibiIsolationForestSpec",
    "alibi-mahalanobis": "detectors.adapters.alibi_outliers:AlibiMahalanobisSpec",
}


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
