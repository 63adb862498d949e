//! A checkout that does nothing: actix, a bearer token verified, the body of `POST /checkout` decoded, an order answered.
//! What the ledger's server costs above this is the ledger. `http-baseline ADDRESS:PORT SECRET_FILE`: the secret of
//! `ledger token`.

use actix_web::http::header::AUTHORIZATION;
use actix_web::web::{Data, Json, post};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Deserialize)]
struct Claims {
    sub: String,
    roles: Vec<String>,
}

#[derive(Deserialize)]
struct Checkout {
    sku_id: String,
    buyer_id: String,
    #[serde(rename = "payment_method")]
    _payment_method: serde_json::Value,
    delivery_preferences: Preferences,
    order_metadata: serde_json::Value,
}

#[derive(Deserialize)]
struct Preferences {
    mode: String,
}

/// The members that a new order has.
#[derive(Serialize)]
struct Order {
    order_id: String,
    sku_id: String,
    status: &'static str,
    amount: i64,
    currency: &'static str,
    scale: i64,
    refunded: i64,
    created_at: &'static str,
    updated_at: &'static str,
    delivery_mode: String,
    revision: u64,
    order_metadata: serde_json::Value,
    deliveries: [(); 0],
}

#[derive(Serialize)]
struct Answer {
    ok: bool,
    order: Order,
}

struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

async fn checkout(req: HttpRequest, wanted: Json<Checkout>, tokens: Data<Tokens>) -> HttpResponse {
    let token = req.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let claims = token.and_then(|t| decode::<Claims>(t, &tokens.key, &tokens.validation).ok());
    let Some(claims) = claims.filter(|c| c.claims.roles.iter().any(|r| r == "buyer")) else {
        return HttpResponse::Unauthorized().finish();
    };
    let Some(key) = req.headers().get("Idempotency-Key").and_then(|v| v.to_str().ok()) else {
        return HttpResponse::BadRequest().finish();
    };
    let wanted = wanted.into_inner();
    if wanted.buyer_id != claims.claims.sub {
        return HttpResponse::Forbidden().finish();
    }
    let order = Order {
        order_id: format!("{key:0>32}"),
        sku_id: wanted.sku_id,
        status: "pending",
        amount: 1250,
        currency: "EUR",
        scale: 2,
        refunded: 0,
        created_at: "2025-01-01T00:00:00.000000Z",
        updated_at: "2025-01-01T00:00:00.000000Z",
        delivery_mode: wanted.delivery_preferences.mode,
        revision: 1,
        order_metadata: wanted.order_metadata,
        deliveries: [],
    };
    HttpResponse::Created().json(Answer { ok: true, order })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, secret] = arguments.as_slice() else {
        return Err("usage: http-baseline ADDRESS:PORT SECRET_FILE".into());
    };
    let secret = std::fs::read_to_string(secret)?;
    let secret = ledger_engine::hash::from_hex(secret.trim()).ok_or("the secret file must hold hex")?;
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["ledger"]);
    let tokens = Data::new(Tokens { key: DecodingKey::from_secret(&secret), validation });
    let app = move || App::new().app_data(tokens.clone()).route("/checkout", post().to(checkout));
    let workers = std::thread::available_parallelism()?.get();
    let server = HttpServer::new(app).workers(workers).bind(address.as_str())?;
    println!("listening on http://{address}");
    Ok(rt::System::new().block_on(server.run())?)
}
