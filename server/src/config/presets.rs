//! The presets: figures for a machine of one's own, for a server of customers, and for the strictest.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use tidelog_engine::Settings as EngineSettings;

use super::{Audit, Auth, Bounds, Config, Encryption, Http, LimitsConfig, Log, Telemetry, Tls};

/// Which figures hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// No rates, wide limits.
    #[default]
    Development,
    /// For customers.
    Production,
    /// The narrowest.
    Strict,
}

impl std::str::FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "development" => Ok(Self::Development),
            "production" => Ok(Self::Production),
            "strict" => Ok(Self::Strict),
            _ => Err(format!(
                "preset is development, production or strict, not {text:?}"
            )),
        }
    }
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Preset {
    fn limits(self) -> LimitsConfig {
        let development = LimitsConfig {
            body_bytes_max: 10 << 20,
            import_bytes_max: 64 << 30,
            sql_bytes_max: 1 << 20,
            params_max: 1_000,
            batch_max: 100,
            tables_max: 0,
            rows_max: 100_000,
            result_bytes_max: 64 << 20,
            query_ms: 30_000,
            request_ms: 120_000,
            head_ms: 10_000,
            body_ms: 30_000,
            import_pause_ms: 30_000,
            cursor_pause_ms: 30_000,
            drain_ms: 30_000,
            page_default: 100,
            page_max: 500,
            connections_max: 4_096,
            connections_per_peer_max: 0,
            connections_per_principal_max: 1_024,
            untaken_bytes_per_namespace: 256 << 20,
            streams_per_principal_max: 8,
            in_flight_per_principal: 0,
            in_flight_per_namespace: 0,
            requests_per_minute_token: 0,
            requests_per_minute_namespace: 0,
            requests_per_minute_peer: 0,
            auth_failures_per_minute: 0,
            slow_query_ms: 1_000,
        };
        match self {
            Self::Development => development,
            Self::Production => LimitsConfig {
                body_bytes_max: 1 << 20,
                sql_bytes_max: 100 << 10,
                tables_max: 1_000,
                rows_max: 10_000,
                result_bytes_max: 16 << 20,
                query_ms: 10_000,
                request_ms: 60_000,
                connections_per_peer_max: 1_024,
                connections_per_principal_max: 512,
                untaken_bytes_per_namespace: 128 << 20,
                in_flight_per_principal: 256,
                in_flight_per_namespace: 1_024,
                requests_per_minute_token: 6_000,
                requests_per_minute_namespace: 60_000,
                auth_failures_per_minute: 5,
                ..development
            },
            Self::Strict => LimitsConfig {
                body_bytes_max: 1 << 20,
                sql_bytes_max: 10_000,
                tables_max: 1_000,
                rows_max: 10_000,
                result_bytes_max: 8 << 20,
                query_ms: 5_000,
                request_ms: 30_000,
                body_ms: 10_000,
                connections_per_peer_max: 128,
                connections_per_principal_max: 64,
                untaken_bytes_per_namespace: 64 << 20,
                streams_per_principal_max: 4,
                in_flight_per_principal: 32,
                in_flight_per_namespace: 256,
                requests_per_minute_token: 1_000,
                requests_per_minute_namespace: 10_000,
                requests_per_minute_peer: 100,
                auth_failures_per_minute: 5,
                slow_query_ms: 500,
                ..development
            },
        }
    }

    /// The whole configuration of a preset.
    pub fn config(self) -> Config {
        let engine = EngineSettings::default();
        Config {
            preset: self,
            data: engine.data,
            store: engine.store_url,
            store_file: None,
            region: "auto".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_listen: None,
            insecure_listen: false,
            durability: engine.durability.to_string(),
            ship_interval_ms: ms(engine.ship_interval),
            journal_max_bytes: engine.journal_max_bytes,
            durability_timeout_ms: ms(engine.durability_timeout),
            idle_close_ms: ms(engine.idle_close),
            stream_idle_ms: ms(engine.stream_idle),
            stream_gate_idle_ms: ms(engine.stream_gate_idle),
            drill_every_seconds: engine.drill_interval.map_or(0, |every| every.as_secs()),
            old_versions_days: engine
                .old_versions
                .map_or(0, |kept| kept.as_secs().div_ceil(86_400)),
            open_databases_max: engine.open_databases_max,
            workers: engine.workers,
            workers_per_tenant: engine.workers_per_tenant,
            tls: Tls::default(),
            log: Log {
                filter: "warn,tidelog_server=info".to_owned(),
                json: self != Self::Development,
            },
            limits: self.limits(),
            auth: Auth {
                live_tokens_allow_ddl: self == Self::Development,
                jwt: None,
            },
            http: Http::default(),
            audit: Audit {
                preset: None,
                retention_days: 90,
                ship_interval_s: engine.audit_ship_interval.as_secs(),
            },
            engine: Bounds {
                streams_per_principal: engine.streams_per_principal,
                streams_per_database: engine.streams_per_database,
                streams_per_tenant: engine.streams_per_tenant,
                streams_max: engine.streams_max,
                gate_queue_max: engine.gate_queue_max,
                gate_timeout_ms: ms(engine.gate_timeout),
                restores_max: engine.restores_max,
                disk_reserve_bytes: engine.disk_reserve_bytes,
                reader_max_age_ms: ms(engine.reader_max_age),
                wal_hard_bytes: engine.wal_hard_bytes,
                turns_at_once: engine.turns_at_once,
            },
            encryption: Encryption::default(),
            telemetry: Telemetry {
                otlp_endpoint: None,
                sample_percent: 100,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Limits;

    /// Goal (SEC-7): the figures that are promised for a server of customers and for the strictest, one by one.
    #[test]
    fn the_figures_of_the_presets_are_the_promised_ones() {
        let production = Preset::Production.config();
        let limits = &production.limits;
        assert_eq!(
            (
                limits.requests_per_minute_token,
                limits.requests_per_minute_namespace,
                limits.requests_per_minute_peer,
                limits.auth_failures_per_minute,
            ),
            (6_000, 60_000, 0, 5)
        );
        assert_eq!(
            (limits.body_bytes_max, limits.sql_bytes_max, limits.rows_max),
            (1 << 20, 100 << 10, 10_000)
        );
        assert_eq!((limits.query_ms, limits.request_ms), (10_000, 60_000));
        assert_eq!((limits.tables_max, limits.batch_max), (1_000, 100));
        let strict = Preset::Strict.config();
        let limits = &strict.limits;
        assert_eq!(
            (
                limits.requests_per_minute_token,
                limits.requests_per_minute_namespace,
                limits.requests_per_minute_peer,
                limits.auth_failures_per_minute,
            ),
            (1_000, 10_000, 100, 5)
        );
        assert_eq!((limits.sql_bytes_max, limits.query_ms), (10_000, 5_000));
        for preset in [&production, &strict] {
            assert!(preset.log.json && !preset.auth.live_tokens_allow_ddl);
            assert_eq!(
                (preset.limits.params_max, preset.limits.batch_max),
                (1_000, 100)
            );
        }
        let development = Preset::Development.config();
        assert!(development.auth.live_tokens_allow_ddl && !development.log.json);
    }

    #[test]
    fn every_preset_is_sound_and_no_config_is_development() {
        for preset in [Preset::Development, Preset::Production, Preset::Strict] {
            preset.config().check().expect("a preset is sound");
        }
        assert_eq!(
            Preset::default().config().limits.limits(),
            Limits::default()
        );
    }
}
