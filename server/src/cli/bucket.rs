//! The commands that read the bucket alone.
use super::args::{HistoryOptions, RestoreOptions, VerifyOptions};
use super::exit::Failure;
use super::output::Output;
pub(super) async fn list(_s: String, _o: &Output) -> Result<(), Failure> {
    Ok(())
}
pub(super) async fn history(_s: String, _x: HistoryOptions, _o: &Output) -> Result<(), Failure> {
    Ok(())
}
pub(super) async fn restore(_s: String, _x: RestoreOptions, _o: &Output) -> Result<(), Failure> {
    Ok(())
}
pub(super) async fn verify(_s: String, _x: VerifyOptions, _o: &Output) -> Result<(), Failure> {
    Ok(())
}
pub(super) async fn check(_s: String, _o: &Output) -> Result<(), Failure> {
    Ok(())
}
pub(super) async fn recover(_s: String, _t: bool, _o: &Output) -> Result<(), Failure> {
    Ok(())
}
