"""Amounts and currencies, as Stripe checks them."""

from app.sandbox.stripe.errors import invalid

# The least and the most that can be charged: https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts
MINIMUMS = {
    "usd": 50, "aed": 200, "aud": 50, "bgn": 100, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50,
    "gbp": 30, "hkd": 400, "huf": 17500, "inr": 50, "jpy": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50,
    "pln": 200, "ron": 200, "sek": 300, "sgd": 50, "thb": 1000,
}  # fmt: skip
MAX_AMOUNT = 99_999_999
LARGER_MAXIMUMS = {"idr": 999_999_999_999}
# How Stripe's sentences write an amount of these currencies.
_SYMBOLS = {
    **dict.fromkeys(("usd", "aud", "cad", "hkd", "mxn", "nzd", "sgd"), "${}"),
    "brl": "R${}", "eur": "€{}", "gbp": "£{}", "huf": "{} Ft", "inr": "₹{}", "jpy": "¥{}", "pln": "{} zł", "thb": "฿{}",
}  # fmt: skip
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


def checked_amount(amount: int, currency: str, *, param: str, least: int = 1) -> int:
    """Return an amount of the currency, which may be less than can be charged: a part of it, or a price.

    :raises StripeError: when it is below `least` or above the maximum
    """
    if amount < least:
        message = f"This value must be greater than or equal to {least}."
        raise invalid(message, param=param, code="parameter_invalid_integer")
    largest = maximum(currency)
    if amount > largest:
        message = f"Amount must be no more than {_written(largest, currency)}"
        raise invalid(message, param=param, code="amount_too_large")
    return amount


def checked_charge(amount: int, currency: str, *, param: str) -> int:
    """Return an amount that can be charged.

    A currency without a minimum of its own has that of the currency it is converted to, at a rate that the stand-in
    doesn't know: of it, any amount can be charged.

    :raises StripeError: when it is below the currency's minimum or above its maximum
    """
    checked_amount(amount, currency, param=param)
    if amount < minimum(currency):
        message = f"Amount must be at least {_written(minimum(currency), currency)} {currency}"
        raise invalid(message, param=param, code="amount_too_small")
    return amount


def check_total(total: int, currency: str) -> None:
    """Check what a checkout session comes to; it may be nothing.

    :raises StripeError: when it is something that can't be charged
    """
    if 0 < total < minimum(currency):
        least = f"{_written(minimum(currency), currency)} {currency}"
        message = f"The Checkout Session's total amount due must add up to at least {least}"
        raise invalid(message, code="amount_too_small")
    if total > maximum(currency):
        most = _written(maximum(currency), currency)
        message = f"The Checkout Session's total amount due must be no more than {most}."
        raise invalid(message, code="amount_too_large")


def minimum(currency: str) -> int:
    return MINIMUMS.get(currency, 1)


def maximum(currency: str) -> int:
    return LARGER_MAXIMUMS.get(currency, MAX_AMOUNT)


def checked_currency(currency: str, *, param: str = "currency") -> str:
    lowered = currency.lower()
    if lowered not in CURRENCIES:
        known = ", ".join(sorted(CURRENCIES))
        raise invalid(f"Invalid currency: {currency}. Stripe currently supports these currencies: {known}", param=param)
    return lowered


def display(amount: int, currency: str) -> str:
    """The amount as a person reads it, e.g. "20.00 USD"."""
    return f"{_number(amount, currency)} {currency.upper()}"


def _written(amount: int, currency: str) -> str:
    """The amount as Stripe's sentences have it, e.g. "$0.50"."""
    return _SYMBOLS.get(currency, "{}").format(_number(amount, currency))


def _number(amount: int, currency: str) -> str:
    return f"{amount:,}" if currency in ZERO_DECIMAL else f"{amount / 100:,.2f}"
