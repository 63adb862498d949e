//! What is signed beside commits, before a command is queued: no signer is called, and no key tried, while a chain waits.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::delivery_proof::{DeliveryProof, ProofTerms};
use crate::document::{DocumentFault, DocumentPlace, SignedDocument};
use crate::domain::command::{Action, Command, DeliveryStep};
use crate::domain::decide::{Refusal, RefusalCode};
use crate::domain::money::Money;
use crate::finance::FinanceSignature;
use crate::json::Value;
use crate::ledger::{AppendError, Ledger};
use crate::licence::{Licence, SCOPE_DEFAULT, Terms};
use crate::manifest::Manifest;
use crate::reader::blocking;
use crate::registry::Purpose;
use crate::signer::SignerError;
use crate::store::{Store, StoreError};
use crate::stream::{CaseId, Stream};
use crate::writer::Work;

/// Orders remembered that are perhaps not stored yet: as many as callers can have on their way, and more.
const ASKED: usize = 65_536;

/// What an order is about. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct About {
    sku_id: String,
    buyer: String,
}

/// Orders that this process was asked to create, so that a licence which follows at once need not wait until they are stored.
pub(crate) struct AskedOrders(Mutex<LruCache<CaseId, Option<About>>>);

impl Default for AskedOrders {
    fn default() -> Self {
        AskedOrders(Mutex::new(LruCache::new(NonZeroUsize::new(ASKED).unwrap_or(NonZeroUsize::MIN))))
    }
}

impl AskedOrders {
    pub(crate) fn asked(&self, case: CaseId, sku_id: &str, buyer: &str) {
        let about = About { sku_id: sku_id.to_owned(), buyer: buyer.to_owned() };
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Which of two different requests under one id is accepted is not known here.
        let known = match asked.get(&case) {
            Some(before) if *before != Some(about.clone()) => None,
            _ => Some(about),
        };
        asked.put(case, known);
    }

    fn about(&self, case: CaseId) -> Option<About> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&case).cloned().flatten()
    }
}

/// What the first entry of an order says, if it is stored.
fn stored_order(store: &dyn Store, chain: u32, case: CaseId) -> Result<Option<(About, Money)>, StoreError> {
    let Some(head) = store.stream_head(chain, &Stream::Order(case).to_string())? else { return Ok(None) };
    let index = head.first_index;
    let corrupt =
        |what: &str| StoreError::Corrupt(format!("entry {index} of chain {chain}: {what}; verify the ledger"));
    let entry = store.entry(chain, index)?.ok_or_else(|| corrupt("it is missing"))?;
    let payload = entry.parse_body().map_err(|e| corrupt(&e.to_string()))?.payload;
    let text = |name| payload.value(name).and_then(Value::as_str).map(str::to_owned);
    let total = payload.value("total").and_then(Money::read);
    let (Some(sku_id), Some(buyer), Some(total)) = (text("sku_id"), text("buyer"), total) else {
        return Err(corrupt("it does not begin an order"));
    };
    Ok(Some((About { sku_id, buyer }, total)))
}

/// What is known of the signed document of a command before it is queued.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    /// A document whose signature was checked, and whether it verifies.
    pub(crate) checked: Option<(SignedDocument, bool)>,
    /// Why there is no licence: an error only if one could be issued.
    pub(crate) away: Option<SignerError>,
}

impl Ledger {
    /// The action with the documents that it needs.
    pub(crate) async fn documents(&self, command: &Command, case: CaseId) -> Result<(Action, Documents), AppendError> {
        let mut action = command.action.clone();
        let mut documents = Documents::default();
        match &mut action {
            Action::IssueLicense { expires_at, scope, licence } => {
                if !self.signs_licences() {
                    if scope.is_none() {
                        return Ok((action, documents));
                    }
                    let message = "scope belongs to signed licences, and this ledger has no licence key; enrol one with `ledger keys`";
                    return Err(Refusal::new(RefusalCode::InvalidCommand, message).into());
                }
                match self.licence(case, scope.as_deref(), *expires_at).await {
                    Ok(signed) => *licence = signed,
                    // A retry still gets its first answer, and a refusal its own code.
                    Err(AppendError::Signer(e)) => documents.away = Some(e),
                    Err(e) => return Err(e),
                }
                documents.checked = licence.as_ref().map(|licence| (licence.document(), true));
            }
            Action::Settle { ledger_proof_id, finance_signature: Some(finance), .. } => {
                documents.checked = self.finance(case, ledger_proof_id, finance).await?;
            }
            Action::Deliver { step: DeliveryStep::Ready { delivery_proof: Some(proof), .. }, .. } => {
                documents.checked = self.tried(proof.document()).await?;
            }
            Action::ListSku { manifest: Some(text), .. } => {
                if let Ok(manifest) = Manifest::parse(text) {
                    documents.checked = self.tried(manifest.document()).await?;
                }
            }
            _ => {}
        }
        Ok((action, documents))
    }

    /// Signs a delivery proof. Ledger, key and time of the terms are those of this ledger and of now, whatever they were.
    pub async fn prove_delivery(&self, terms: ProofTerms) -> Result<DeliveryProof, AppendError> {
        let shared = Arc::clone(&self.shared);
        let chosen = blocking(move || Ok(shared.signer(Purpose::DeliveryProof))).await??;
        let (signer_kid, issued_at_us) = (chosen.key.kid.clone(), self.shared.environment.now_us());
        let terms = ProofTerms { ledger_id: self.id(), signer_kid, issued_at_us, ..terms };
        let signature = chosen.sign(&terms.statement()).await?;
        Ok(terms.signed(signature))
    }

    /// The signed licence of an order; none of one that does not exist.
    async fn licence(
        &self,
        case: CaseId,
        scope: Option<&str>,
        expires_at_us: Option<i64>,
    ) -> Result<Option<Licence>, AppendError> {
        let mut about = self.order_about(case).await?.map(|(about, _)| about).or_else(|| self.orders.about(case));
        if about.is_none() {
            // It may have been queued by another request: then it is stored when that is answered.
            let barrier = self.enqueue(case.route(self.genesis().chains), Work::Barrier).await?;
            barrier.await.unwrap_or(Err(AppendError::Closed))?;
            about = self.order_about(case).await?.map(|(about, _)| about);
        }
        let Some(About { sku_id, buyer }) = about else { return Ok(None) };
        let shared = Arc::clone(&self.shared);
        let chosen = blocking(move || Ok(shared.signer(Purpose::Licence))).await??;
        let terms = Terms {
            order_id: case,
            sku_id,
            buyer_id: buyer,
            scope: scope.unwrap_or(SCOPE_DEFAULT).to_owned(),
            expires_at_us,
            issued_at_us: self.shared.environment.now_us(),
            ledger_id: self.id(),
            signer_kid: chosen.key.kid.clone(),
        };
        let signature = chosen.sign(&terms.statement()).await?;
        Ok(Some(terms.signed(signature)))
    }

    /// Checks the signature of finance, if order and key are known already.
    async fn finance(
        &self,
        case: CaseId,
        ledger_proof_id: &str,
        finance: &FinanceSignature,
    ) -> Result<Option<(SignedDocument, bool)>, AppendError> {
        let Some((_, total)) = self.order_about(case).await? else { return Ok(None) };
        self.tried(finance.document(case, ledger_proof_id, &total)).await
    }

    /// A document with whether its signature verifies, if its key is known already.
    async fn tried(&self, document: SignedDocument) -> Result<Option<(SignedDocument, bool)>, AppendError> {
        Ok(match self.judge(document.clone()).await? {
            Ok(()) => Some((document, true)),
            Err(DocumentFault::Signature) => Some((document, false)),
            Err(_) => None,
        })
    }

    /// Judges the signature of a document by the registry as it is now.
    pub async fn judge(&self, document: SignedDocument) -> Result<Result<(), DocumentFault>, StoreError> {
        self.refresh_registry().await?;
        let (registry, ledger_id) = (self.registry(), self.id());
        blocking(move || {
            let place = DocumentPlace { ledger_id: &ledger_id, chain: 0, index: 0, registry_size: registry.size() };
            Ok(document.check(&registry, place))
        })
        .await
    }

    async fn order_about(&self, case: CaseId) -> Result<Option<(About, Money)>, StoreError> {
        let (store, chain) = (Arc::clone(&self.shared.store), case.route(self.genesis().chains));
        blocking(move || stored_order(&*store, chain, case)).await
    }
}
