"""Amounts and currencies, as Stripe checks them."""

from app.sandbox.stripe.errors import invalid

MAX_AMOUNT = 99_999_999
# https://docs.stripe.com/currencies#presentment-currencies
_PRESENTMENT = (
    "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bif bmd bnd bob brl bsd bwp byn bzd cad "
    "cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd "
    "hnl hrk htg huf idr ils inr isk jmd jpy kes kgs khr kmf krw kyd kzt lak lbp lkr lrd lsl mad mdl mga "
    "mkd mmk mnt mop mro mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln pyg qar "
    "ron rsd rub rwf sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs uah ugx uyu "
    "uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw"
)
# https://docs.stripe.com/currencies#zero-decimal
_ZERO_DECIMAL = "bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf"
CURRENCIES = frozenset(_PRESENTMENT.split())
ZERO_DECIMAL = frozenset(_ZERO_DECIMAL.split())


def checked_amount(amount: int, *, param: str, least: int = 1) -> int:
    if amount < least:
        message = f"This value must be greater than or equal to {least}."
        raise invalid(message, param=param, code="parameter_invalid_integer")
    if amount > MAX_AMOUNT:
        raise invalid("Amount must be no more than $999,999.99", param=param, code="amount_too_large")
    return amount


def checked_currency(currency: str, *, param: str = "currency") -> str:
    lowered = currency.lower()
    if lowered not in CURRENCIES:
        known = ", ".join(sorted(CURRENCIES))
        raise invalid(f"Invalid currency: {currency}. Stripe currently supports these currencies: {known}", param=param)
    return lowered


def display(amount: int, currency: str) -> str:
    """The amount as a person reads it, e.g. "20.00 USD"."""
    if currency in ZERO_DECIMAL:
        return f"{amount:,} {currency.upper()}"
    return f"{amount / 100:,.2f} {currency.upper()}"
