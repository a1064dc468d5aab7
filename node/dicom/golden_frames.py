"""One small frame in every transfer syntax that we may offer, for the start-up test of the decoders (NET-6).

A smooth 12-bit picture of 32 x 40 pixels with noise; 8-bit for JPEG Baseline, the same picture divided by 16. Encoded
by other software than decodes it here: DCMTK (JPEG, JPEG-LS, RLE), OpenJPEG (JPEG 2000), OpenJPH (HTJ2K).
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from zlib import decompress

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 32, 40


@dataclass(frozen=True)
class GoldenFrame:
    """An encoded frame.

    Attributes
    ----------
    encoded
        Base64 of the frame's codestream.
    bits
        BitsStored: 12, or 8 for JPEG Baseline.
    tolerance
        Largest difference of a pixel from `picture` that a right decoder can make; 0 where lossless.
    """

    transfer_syntax_uid: str
    encoded: str
    bits: int = 12
    tolerance: int = 0

    @property
    def codestream(self) -> bytes:
        """The bytes of the frame."""
        return b64decode(self.encoded)


def picture(bits: int = 12) -> NDArray[np.uint16]:
    """What every frame decodes to: uint16, (rows, columns)."""
    full: NDArray[np.uint16] = np.frombuffer(decompress(b64decode(_PICTURE)), dtype="<u2").reshape(ROWS, COLUMNS)
    return full // np.uint16(1 << (12 - bits))


_PICTURE = (
    "eNoNlnl0SNcWxuWcs8/e+5xzaQ0dTBWhAzFPSYnxFRVDjVVEEURCXo0RomZ5ItSrtC+6KuZZRavaorTVZWgoiUSqCN4jPC2i0j40aXjn"
    "j7vWvXfd8927992/7zuVKpVTTVPfKnfE9QpWBVuCBUG94J8ux+aaY7yVpuFA3QoiVaz8TLwqykLKQ5qKbaKHrK2ehXA9EOfSdt5vPrHJ"
    "rkYwK8gOcvEOsXlibtpMf2dMkBL0D/5wcW6nPWQO8EaaizE6GoaoBbJIjBcviSZiqDghJshOqilEeb0UWsVZZrEd4O66fkFSkIf5VMhf"
    "mzk2zK1zN9z/XL5LcmW2p51iFnMaLcF5ehlkq7tygLwj9old4pLoLs/JVSoeRugYjKNEHmqa2mI73f3gfne5uItmcwdz3STaAl/1867c"
    "fm672T1Gmq48jlbgIX0PwiFd1VBfyGUyTX4lQ9R8VQtOwwadjH2pEd/jLaaD3Wl/t1VdHiZSZV7LT5tZ5rD51Twyv5gvzCjzB0/hC9SZ"
    "tuBjPU4XwSRAOKuy1XZ1TCHEQC4M0nf0SnyZjtMYvsZDzEZTbP4wZ7AlLaIiasgxvJA38jZez/O5NzMfpYlUnfbjYBSYrRN0W/2UfgwV"
    "ADpcx+mNukRH4y5kGk8HKYSjOZmzeBcX4lWsQEe1KJzaUQS1oUh/FkrVSNBDLMKj+CmuwxU4B5PxHRyPE3ECJmIKLsVNmI3H8Wd8gE+w"
    "Br1CzehViqICXINxGInVsERf0j/q73WOvqL/0s9gZ5yKO/AiVqfulExr6Es66+soonw6QOtpGvWhF+g27sZZ2BvrYoVfnaO/1bnYDy/o"
    "abqaPg7pEAtjYAqsgZ/gRb1SV/h+l+IkukoDfCX3uK6JMu3NS6aUs3kE36H5FEIL8CnM0hG6GDbATBgOhfgcxupvoCl8rcapZqqh6qim"
    "qzzVD4ohQ7+Gig7TVHZmrQmxg22yTbL9bWB3mDpmPudTPYrBzboCRkOxSlXdVJg6i8W6HBpBorosJ8rGMlRG+Zl4LNerOOigG2NNQr7M"
    "O0yMvWGj3UyX7KJdqZ1ij5gQU5ub09/8vL8Lh1U1lSF7yDBZgN/pz/11iewij4jZIlYsEzdFgnxRafgTAmxAbbidCbP/tUtcqWsVtAwg"
    "yHTStbX9TH+OoiYYqsMgSs2V90WGmCTO4Va9FFLVTnnXXz0vlGjgFevIW/K0ughP9MvUl0ebYba5K3JDgozgg2B4cN/1cDPsXDOVe1EY"
    "lsNvSqoI+ZFoK4Q4hRv0PyBNbZXFYowIRIioK5aI6vKaLFBXoEw3pl483sTadq7YvR18GGQGY73eILfALjSJ3IdCsczrPZaN5L9EuF99"
    "Dg/qnbBPXfO9yxZxnvYUUShGyOfUI1UOjHUogjuaZvahzXAu6BR0CWoE21xl18WONEP4dV/vC7q295/J/nsWiIHiNBbpO1ADRqsTcrB8"
    "Rj4WYXKSvC3T1UBooUPxGVJcwsfMVFvJjXQfes+Y5Nil2UuGTShHUhQO1omwRQmVLOtLkIVYFfvoDVAZVquuyqk/ZU3VX+1VEXAW0nQv"
    "Py/H6F0OM1+aF+1sm2W32Hm2rf+7keZjLqY6NNr36ya8Bt+rGO8YD+Qp7Ik5eqAugbUwAtpDG+gI02E/sE7xvM/AR5hEpRTHP3I109vE"
    "mngTbRqYQp7NIZxKkhaixFT9rD4CU6GbX30O38P+WAd/86R9olfrD3WW3qPz9BM/exNxK17xE/MWraBDdIXKCNiw8mTkUAaNpEZ0zzMc"
    "j22wEp7Te/3K1boAC/EW3vFUVyL2/JD3AaS/sAzv42VPb653hEPeE3bgeszEj/Ejf2zy79mJe/EwnsA8LMYS/M0/j2S8QiGG0izfI8Et"
    "+C2exkkcz325Cd+lXRRDVWgvjsLqeEYv12/rjrqRbqw76EE61ZNPONB/XQUOpc10g+rxG5zA0/kkTqByWsyl/IbJMsdNvu98uulqLvAw"
    "zvMOlIUBztFlsBJaQ5nKVefVPfUSzIUbMFmX6WXYhL6h7pzDjc1Cc9DkmALcTAncwBw1vewue9s+sOftatvIbjQPOJIn0HLP4yPoCVtV"
    "c3VVfiq3yfOyvlqjWsB12OL/V3eqxRd5qXnWrrAXvOPnYi4d4U/8fFVx77rj7id32MW7a34mEk2Kz6M0XKwzvfcINVYqeVKcFhXiTfmL"
    "XKdmQoIeh/E0lqNNqM21b7rdrtCdwdsUYspMoV3mKgejgneCnsGvbrjbYPeZbP7Y5+VY3Q/GqFXyppgm2oiW4u/inEiSPVRriNADcBp9"
    "wBlmnu3hLrsOQUJQiI+outcX7jvX2dO+O0gNGgbp7oTNNyd4E83A3joC2qnR8ivR2fNZFhIu1oloWVfV9Hk+AGdTFu8xO+0MV8Xn+Y7g"
    "DN4nNM6W2CxXP5gaLPaZTsEUt91+a/Z5vWQc4vO8t5op88QIUVPUEQPEcTFetlCvQKTXm0EZPs9X2hj30L0ZLAkK8Cr95Pl830a4z125"
    "o+C2W+7IDbLzzAe8nFIwWc+CTPWz7CTPiiyx2qu1kt/K+SoGRvo8n0xJ3s9etfftPHfFKV/vHlrOPc0Dk2pv2Yautavpzttx9pSpal7n"
    "ybQUd+srUAtmerKzZJxMkKtlsUzwGXwU3teTsA+1YGm+Mv3sKVvLtXGn/I6mBn/BTU2muWmq23oW7UWzyDxt0rnUZ9gafKiH6RPQF26r"
    "TWqBSlGb1XXVEQ5AV31Vp2FzKvD5EmKmmFzDNtTmY3taR4+oEy/ifXySfe28nSdzuN8dLKLn6DN8A6/r9/RrurK+7vcYP8B/oJJnZIn+"
    "WUfiNnyaEumkp2M8b+UjfIEL8FckakBdaSiN9VmfSPE0gnpSWwojRf/Gk7gd0zABh3kfautzurWnvysO8tm+zKsdxZueuNp+J/A6DaMJ"
    "9KTK/wFlxKA5"
)

GOLDEN_FRAMES = (
    GoldenFrame(
        "1.2.840.10008.1.2.4.50",
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQEBAQE"
            "AgMFBQQEBQQEBAT/wAALCAAgACgBAREA/8QAGgAAAgIDAAAAAAAAAAAAAAAACAoEBgEDCf/EACYQAAEEAQQCAgIDAAAAAAAAAAMBAgQF"
            "BgAHCBESIRMxCVGBwfD/2gAIAQEAAD8AL/jJyXwfj/ilFiUcFRj9Rj1XHpammrowqyrqYsUTQx40aOxEGIQhjYxg2IjWtYiIiIiauu+n"
            "MjFd1aWTWVs6MYhgqNrRvRy9qnWl9N/uI2T7u3EuxrIcgw5BXEaoxuci9r3rRsJxCyjaS4i2VnCkhHHMhHOIxWp6XvTBexHMTFdp6WNW"
            "Wc2MEgAtG5CERvXSaWV5k53m+PZFYhx8kxgWHc1iAV3X2v61R+KO4u4F9lEIN2Wa8LpDUchnOVOvLTiXEHAMEyDG4B70cNxXga5/zNaq"
            "9qifvUrl1t9geP41OPQjhNOyO5WqFG+XfS9fWk7eWe4efUOTTgUZZrQNkOa1BK7rrtetdyse4Qxd/gstiwUkLLT5PJR+ffl7+/8AfWpV"
            "7+P6LsiB1yKuYBYyfKjkH4/Xv9aHrIOdsrYcz6gU98dIy/F4oXw+vWsUHPOVvqZlOWwdISSvxK1S+fl5ev70QlDwEib4gbcFrmndJRCq"
            "5wkd337+/wCdHbxS3+xDbeigw7uRFEQAWtchXNRUVETVw5LckcIz7HZkGnlQyFKBzEaJzVVfS9fWlWuUfHnM9w7+bMpo8ogjGc9qiY5y"
            "e1XUfi/x1zTb3IIU24jSxjEdr3KVjkT0vfvvTWfFDfjHcchUOLDjktb+0kx6eqpoEZ9ha2ks72BBGjR2IpClKR7GMGxFc5zkREVVRNf/"
            "/9k="
        ),
        bits=8,
        tolerance=2,
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.51",
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQEBAQE"
            "AgMFBQQEBQQEBAT/wQALDAAgACgBAREA/8QAGgAAAgIDAAAAAAAAAAAAAAAADA4ICgUHDf/EAC0QAAAEBgEEAQQBBQAAAAAAAAECBQcD"
            "BAYICREKAAsMEiETFCIxMg0VQlFx/9oACAEBAAA/ADDHxlTyW/g7+P8A3FOwYcS5gmJxHYBcR3HqxcMPhnxOYacdVurVYzcYeJ+2G2Vs"
            "aXZlgra7b7faHTUWhmyaxsKFoulaKo9vKJSEmnqapylEdJSU6UT5GUl4Vz3voHmQXFc7qhhhuPxl42L1Lc3Xr58WpVqHREmh63SVmYiT"
            "U+nxJQkOGEOKcREPq/xKGxEdbAdB0vsff5fEc+TZ3drMBdBkZxg2fP67zevy6KxXqKrN/QiutyU5BUJyNMQzwxgQvXQkiF9SlERADb9h"
            "16jpbsI/iFPKB7SjmNtjyNZMrO7imjoRjnYSq8X1SvqEVEWWlZdNnoU1FiAePBAoF/y/EA0H7ANe3TBW9iL8w84tnahcMttONXJRejbm"
            "0DhMg0yK3qvIOE4iWixZSOnJ5IBigSPEIcpgNA0P69fYQ/ZellS8yI53XNv49HIayENFgLru7emGnpZ96lR6Yk2RnFmGnhLQ1CaLBMUJ"
            "MfpgBiwygGh0Ht/zqj/4o13Evn751+TzZCzGbVy70KgaKpbgqdSKhlHZW6imUWLJxVeASPv65vUANDEB0YQ/mA73rpxIvEHuAXwU8/nG"
            "/sMeTOlQFnlQOjVbD06r1Kd401BnVIZw6TLnje33ZfcDiY4/JxEfb1AQDQB1JLy5nt9PBBwGca++h4sGTeWdU079MMLUalTsZpk1BgK8"
            "OdhpMY8v6/alKOwNoPUR2AHMAFHWxTuTyzLuGfPgwL8mK+JlsIjj3mU6zVNv/UaLTki0izUBEk0pCVI8OWKQZY4lKBiaEpShvW/kQD16"
            "7lVx5vCILau/vNTS2Vd0rGUW4RSumkITiTS4qt6SphOKwQJuGMSYGGf239cmw386H8tD1J7Of/T+21TskbKVFmNbfHfSzGK1uKbFdWWW"
            "pBs4NORpYqUBpwkQsUIJB0P0tF/L40AB+JvXoe5z+edl3MdiDdyqcS7XX71RbvJ21qcdsyIia5UWmSy/9n95MYQECIQCjqEYNfAAIDoN"
            "AOsTgV882uj76g8tLYiXKv7qN+0+5BShNfNo6o5kxUZ1QiuckqMI0I0cxh2EyYfURAPj518ABBzgh8BKtU74gzdOZgnSx6U0/KlceiQX"
            "WmlpTbGCtmn4qlDJPbNFPAMYSm+voCm+R189HZ/in3f2uIb24fBlZNaDmnf62VuXHaFnafpupJV06qREhVkZiQT5WFGJGCObZPzhm+NA"
            "PsUwAGvyNb+8lg8kW4S3Pl4893lkGI65u0aunUcxi12lkpLbWp0SfUYszMpszLwhD7YxhERMf49QKOjAADvQ9Kt35Rx485zK+4d57707"
            "yMNlvd0jkNw6rzrlWIUw1tKLSunR4U+ozEaCJDwSGIOyxCgAl/QAAaHQ9R78YE8dn5nHb4M/Fm15uYi3C6mgWwa57ECq6jmnRpFdTk6B"
            "BlFCXmDmjRJknoUsMCaEP0AEH/YgVrNPFB+/G8eXjq2YYIeLTQ1u7jZSM+OTm4Ng8QGKnDzYNbPU9/eU/KPdW+tYUozTDW225MJRSaq1"
            "y5joOVXlWUpRdIUBRqQqVDUlQVMkpaUmzk9OS0vF/9k="
        ),
        tolerance=4,
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.57",
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAgACgBAREA/8QAIAAAAgMBAQADAQEBAAAAAAAABQYDBAcCAQAICQsMEP/aAAgBAQAEAAD/"
            "AL/R9/o/+hH3i+3v2J0gmt499b/px9Bfz1/OD8zPzf8Azf8AoL9KfqbhGf8ArnvP2g+6v37/AEV/Sf8ASv8ASr9EPvp9zPs7sjr/AHz/"
            "AOBDyNlp1JZoZO7Vyexf8vS+3ffZa9X3qnCO4GRUuueaPoQKPWavMFaf0jbLljjAbOmSlohPQljGBg4MUBHL44PUoyeLKWthQQkVLKUu"
            "HmtsPNjq0GWBlmu2OV6guLQBVS1VZXwC7Up+oCimpa6uxwXyhtoaWnRH1qdHpxItViIdXVlZSQ0tCQVZJXF2ChyjZekKqeApVrBRhaX5"
            "/wBCf9E0Z1bHEgRlFBAiQjImeImfZujKoAFzPkqZmqKsBQFe2TaXV00580TT9C0JzcDtmaouqSinZbm+ZoGaJySsBanOfZYhJSSBHwds"
            "TS0Pb7qWk6doeiOp5kKRQAVhFz5GzPL8tSc7SlcFSjzbPkdFV1cNZsFjjs/vmiaToGg6C6tRQpzVBqi1mqDmmeoWcpCYvBxsyEgICesh"
            "KNa1bYm9s0F30V/0JneT7LJ8HUF9FUs9TM8zdLSFYIGjjT0tTUgQOr87LGWNyZn1wdGFyYmUlZ7rigS2uJCKrKKMtqS7Wj6WVtaGgqMF"
            "K2QvmjJ5laGRsYCBacrz8FDASwGV1taArIqkN49CDqdIf5T6gtX78poiSKkbpK9dj6pyCYh9EWIB0oKY2KlWkkkgi85s8ex93Oa1iCzJ"
            "z77B7NWu+V61iL32Ktbgs2SFqwRty3uJqVcaOr0QUYmnTHc8fJ5ZJjl0mQMz37difiBpYD547bsVuh1cGHWgIBSBhQlEJJYgtmT5FgZW"
            "BmNm2bq6RsNzW1sLIcsyxjQIVQWVBEUk1OCgaovm6atszo4sOgNDazsDLe5q6Bozs3MxQrdD+AkpYzhHSM8Q05RVglPmwxMzayvmiPeg"
            "vzk2ljJGy+6FoTwxNl3vxbXF3OU7Mc0R84z5JWgVPwxfbGXRNH0jQHrSXpqbTVnzSNQeHd4P3LVGkppyVlaDnmXIWfpKotQQWGBmen1/"
            "0XStZfnd2bzEnWlaLpDmyn2KOBfEoKMi5plucZ2ioi2HD93yDe66DoGo6No+hP7ixl7dTUnt9cW9lv2aA9XVkJDzfP0HOkNWUQwiedgZ"
            "W7Qn911R2fNCZ2c9LZc3NxcmgoX84FrQBSTERAQ0hRSAgiMcYJsbczvGgN2iO7W2nyluNvbHFmL3bMswoMtgkpeW0ZaUxCvQqXPl8wws"
            "zi1ubM0NB8laveHWS8VMFrPlGrXorYteBClccIojI4blwgbKkT51mMFjV6zNPNMUmsx9WvnFSrXiHDqHouHqPyOrdtdX71yfonf7kt9Q"
            "fIa/tCWOCWfuK58J9z2eve++LXftOvHzSiir1u/lXmUQAEia9WvFLETKlGCyaP3Dpa9NerwQC6oSgFHhwAYRT8r9JoVMAiA1Trs4SNHG"
            "JvaWhwPmzZLmx8XoVtfS1tNXQy0AG0KdVYzkGlLAyhx6WNtDm4Oju7OTg1myhStFSVF1LT05Fz5MWlcCJ5nzVMzhNWgIf5YIH25z0N60"
            "rRHB+cGw7c9Hr4BNSUNDQs4z1GVQID57lucoSsorQuK6QZHLQHfR9Rf9OdnllMmfgcaqqKPneXZvnSCiJahS/u//AP//2Q=="
        ),
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.70",
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAgACgBAREA/8QAIAAAAgMBAQEBAQADAAAAAAAABwgFBgkEAwIBCwAMEP/aAAgBAQABAAD/"
            "AL/Y+9H9CHib1iSRJ1sPLenCC565wZmZv5voKlKmggf/ALczy0Dqv3orpPpXpVog+jmM6ZLr/fP0d0dfZ52xPxNmaqIlyUJEc/M6M283"
            "s7UKSpWgTQPa1m9oXXe/Q/RbSjRfQt53OZsxWf8AdAtA3mcFpz4RpCuCMBqalCJIJn3nyhSRp8sgZo/NcDWxzfOu+egOhWgz1us2zIFS"
            "1/juOe4TTsUZrjKwI3B61qmnyRJOlyZJ4rwJD9U/LcSj+zbZOo67rO44rbMubiTP/rOtCyBzNBEtvdwUsVBNfFnWZZFYWZdgeGqTXPGd"
            "IRWOTCsw0bMs8zjAHQmEKQ+TIUSySbxZbB6+FfpY8HQmFAjDgsFY7pdZjfzos97vZMLpgLxdKhHJVtsvd79U9398j1/vx6cXJwx3JCQ8"
            "XHRsd583N6/Hr3ds31zElPdMtKe3X9/NIpVRrNajODl95WemrVcrvcb1crlZJqb6/wDOWGhqlWajS6DS6lUa9XY3l81/BIZD4yolX/O+"
            "13ooGk3Hs9Ho5nMskS3z/wAxdKHYtB4TAC/g4GBoVjyqwfsoSlK0t4MFNJ5Zm7Fw/sq17ZN+3Las0yRjKlj+a0Ow2uaxKipqeKMrCxgI"
            "Qjyv+aJIslyhLeDR/wAs4TDq0Tjuq973va6zmNoxBmtn7UhMvynp+jSJomjCPp+qq/jOt/WdmeSEpgqS/jiIs5cYRvHgfPRTRfRHQJ7H"
            "EZ42kH8qQRWtMkYQHOvO/PNAUZUBchDWP3NHOHP1I1CX4WRVgMzJuW8uhukulOk2ib8us1h6vv7RgqqqWoRnnmvmxmvnoiSaLAHKXzZq"
            "5yoCjier6KuOdM7Huc+OhejmmOj+jj+uo1p7u31TAYsSWIBnVm/mnmxnqhqVrWFap05y53oSlqkAIccFjLTDt48Ggeh2imjegz4uQzh5"
            "uf1UwisyZI5nvnlnHnjn4jibLmHKj4Ich6UKWsoNoEPZSSf2gch3nwfV7nqddrWOL136qYHF/VFLUXRdA0XRdN1cXUUwXQnidKmtgJFN"
            "JjLDdzCwzMtw4LdOC3DTMmcCpY+isjYFLusKkJwoafqIry+BobwHKvgABIaF49r3j03YiFE5HFiWDPx8OplI95l/aBrAwEgGAi+L8AAE"
            "EBSMKhw9I5oVLqVRiYv46JKw2+2EC93gjXW6W+xTnX6+MPXKTSqXRB8OqXSqnXYry/PqT9Orq6ef38fXk+eaL+OTk5+Pw5ub0+fro+/T"
            "o6+rplOr66u37/PomFgmX232ia++KErw/HoxGIiFozHI9qVei/2RmLleSSSy2Ty2TCDe7hNdXIzzJsSbi8TbT2QdUGwWAC6rSsS3rcvo"
            "UElFqnRMXgrmdi2KZBo2RYhgzEV7x39LouM3TQMMYSB1wFACK7qmoSXJGmabqeroJF1Q5rgSz0yrZOE6Douq37XMediZNeegD5PW4zOm"
            "4kyEMK14VNNkNQ3P/PpEkjUZYQ/Rfu4Fpkm2dh8370Eft53Wa5iCtaPzR3RZ+XbbVhCl31gQrgoqJZ852ZxZy51Ikl6pgyg/F8MzROi9"
            "ugmjWkOkL/vY5DLF+3e+kejmhrwt8wBUmawHllTtCs9M280c1s68/kpVUEUDwuRzax0380S0m0o0j0Sfty2aNVw8NI9FtBXia9hShJV0"
            "SrQmyLZ6Z3ZqZu56IAlSsAse/d1OjQOW/GiGjOkej2hT5OczRgt3roY+73uY057JHbBCBe1LSpFM987s/EAR1QFmCNL8rcbWMcF3dAX/"
            "ANE9Bnrdlt2OL9m+nad1vGuZAxX3vhR4DVlUZNkmRdJEwTxWwCI6T924mMMzreua7bwvI6TaMwfChNcrZsu0B5NJPt3ZDVIUA1eVmVpT"
            "laWJbAMHBvXfG038tntiWdapp2jZ9jzgXr1Me5pMhZI5EuMt2R0FRx2LBSFAwHgkKhtSKpE+UzP3wklMwm41FwulYjECbmP2Xnpyeluz"
            "69/Pii42MgK3E12AgI+Njfvy/e2Sm5udnbFLz83JSPd/eX///9k="
        ),
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.80",
        (
            "/9j/9wALEAAgACgBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAIL649wbb/c8JoWGZW5yVMs/RGCgFmJ8Tx7mkVrxXKI3X/qW2b+k"
            "vKiVcqZHXjZFMd7XR56DsA4RwKgzCsCoFxUixFCOoggxAiC8AoMwPAorAOAUDIpTicTqFkIoAgLEMDicZCQLBuAkZwzl4lwRgCBsEojS"
            "4mxYFIRqhhCMX19LEcNg7A6CMXrO52atEdQlJYP2MZksJheBEAYk69zR08vCmBMcYDnIpxrZOo/Mt7N09fAsGYJStevF9NRaIlP7+voZ"
            "2hhsGYBR7xb/A25zAeB0HqEglc2lJNXd3mpPWZR4HwJhxpfCuaW5G6u/j906MAh2Ac1oHzf0w9gvBKB0eRokJnekxW86nvu6cHYdgZBC"
            "SJytNT0j8PfU+dOtjOAcDJR5VPhibF81gdAmDEOhalsY+byqD/0YuxnB4IgWBoWiEfXyfGsp9nVosngnAOQMo48xnmeHcNQThsKYcxfF"
            "OMMbYwybkLQcxw5kORQCisVymV4lyvGWPMoY00HMckzGFYESavCzrAzEdq1AEEJtQLlQl8xUkq08Xg1V+i5D6AkEp5sUrJXjISCtTtbz"
            "MX6UIbQThHYQzanNmpmhGEJaIhmLwjHA4KBvOpsTEykRYFoIORAOhYEAwGpqPJ0KiuL5ECBJsZTUKRkW9IKCcBhY1PhYfjUgkZ+N4ilh"
            "YkV4BgcsMzk3FQsVpCJ5yO5MUdEiAKkhPBJMr6UdCuEkL8pJysxeEvKZCKJkcygIGgVA9Ji8gd1M6FEilkoNZEyB5xhbHhWVmUhTE8Gr"
            "RTQ0hFLJldaXpXbSO8ARSF2peoNRZLqVjaXRYaSZIJQ6AUJjIdDoMQFgLAxcFKQIg8DoEx0MhoiCEBIBwJjIMwcVBKAwNAUTAyUg4QgF"
            "BGJYRkSYUGDMCz6ejpWkjSNS8Lk8CBJlIFAFOkoqBoEogEjK5UWFHioIgZIefLz3y4LiM+kPzisJuTRWo3dOmfPxCG1i++MKeoYpHdG3"
            "p/yoGQwvf9o/PvPxmBEynbZAd2D7l/UVRw6YaQwidRFwgJVmS7eKL3z8YGDRD1a1H/tja2DEGsGAnKHBBu0OsoPnbbhMCS6iSMC1iZeN"
            "fV/vGHC+EML+VtZQ8+zEwCKRSbVD/V56aWvqPvXcw8AQGem2nTrafVNX/2/5oYLgdJqXz7++7g46EwOjj5PO4vEMoff75c21gcNAZmNj"
            "5+jn5FrHx4d3ZmYBASS2sk1PUuUu8gEvPJxhrtfM9KSUmUw18sU9poiTSbi7MRhNJIyW2Ou1os1bDYapnT9NBXJSlR8YptTUuhsEIzIo"
            "oepjKTsinHQbAyKodDYVhMV30eSuS1mhqGeC+NhqdNJeoKwUSOjMQCUWDAkG4RDNzERLMrqogZnpqJRYfEwSD09crIRdAN5FNR0KG4xE"
            "OwkgSFxMemBk7E43FomZq0QqL2fExWanDk6uD8ZljCSVCbbW8JnpMlJG5C1UwJmpaULLil4v28neExVrF21YFRO0OCHwTMlVIKopVOVF"
            "xYRohjACxoyYLEPSC2hdQVmiM0ZoFwnoxUNULRSCEUpr2TZHiMEC4LAZWZTqQWCFEgRY1OMQsCycHjSIkBgqClKrQ6dmDEJBMFKx6EqH"
            "wBgShm+HbRp0oGpodCygyI9F2M3frt1INQHjWp+FXuJKFoeOXbVvQ2M887H3z6YPgE53zKlrSR1HVUeuvXFhUphZVBQnLNfX65fu+nAi"
            "cWovedZ9x4zETzHN0KE93XVlPSf92PEkJtvsP4gXyC2tqbv635cFEJVJb0PTG8vAZikr3GjLTVtx/rPvnGcFAKamsmOfBeW13XUnTbw4"
            "BRSvX0vD7zY2BjIyOjia5s6+ytflPy7GXgMXGRE87uLeQW9H/oa3VAYA/9k="
        ),
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.81",
        (
            "/9j/9wALDAAgACgBAREA/9oACAEBAAIAAIAAAAADZoCLSspPO3DwVPDATCp0enRyYlRG3Vodfigq7K3uru7tbCn+8tMAAAAABx+sPlsY"
            "TSSQ5a0pw2IWYSQYxndUXldo+MlUWcY08UNJvCtRW5fu5TUUKvtlSvpf93KHwq//OY66VNlGyvDn1KZniXC5kg0Q0VP/f3C63t88VZTp"
            "IsQTNS8lMC3FjHCRZpxZPt1M7ColaWrnSnFsMGLJEl+ltflJBbiTE2lkrtKYYJ8SW1K8nMyl5+LaaSSmZRElHMTST3lt+4MhK6qZ+nN9"
            "p+WeiRXZRz1ELT4XqKbLqbP+72RA8YLPCiopphw5pwgSOHCTCjJUUUgSaIMGjhT5opkRQOFBo18puZ4cODgoKIHhB0i87HdwKGBg4MBQ"
            "gIMkGnJKBxwcNLGpywUIGCAgU40eFiyZGNEFHGDBxTggICTBj0mNGCBxg59MY4ggw5Ag4UNKmISxhBTjCFiDxYkk9HOILNfEPvlMxzEY"
            "0gs4kWiqZikMVznkmkCkElGFdK0YRMdVlDIREpQitqqSURmTkT2Ym6rLNW5SGeUxd9MXJJeojLsXMVqelKfieyzjHox6T/9m6pCDSGJ1"
            "9/6uqWSWrSnZ1YjzjGMpve+9hcqSjiE5MrWvfjY8960w+ZRyiXN9EkrWm5g3qYU0m00laZzenlkv0uKxOZ3G6ry3v6uZMcreqZby2+vZ"
            "pt9VMOv5NP8f3lIqro9POq35znpNNFEncSQ4o8wk8SOxQpxokQIPNMINJXEMYccJOFHFlDE+YQKCRYgwhecQoBAoOCAhseJPLPqmOWeE"
            "DgQ8yOPNLdjiRQoweYnHGHChwQOHMGiipZGqMOFMOEDGnjDSpzUOYYMPJnLliCiDRRQhxgk8gUqleQSWOOSIOFGDHqziVkFj21i2EFEE"
            "KQW0gmWmMY5pTnEeW8l97VjJWstmGd3Z3dd1KaLRtGZ3dUIlLNlJiZjakvXt/USbmpkM9F/CSZc1U4i1/2Mz3UtHMoksr+8qDMQn2KqU"
            "/20fF+Sn7mZfimK2W8n/fGRU0krf8lerTe/aeklM+gqGkIrmmte3YiVbh702RJr0/1MoPea312shbMYdNEtJSdcYiM7MGiTS3prYw8sL"
            "v5f0RMEmlnknrHy7zcmHqqjTXio90AAAAABv8P/Z"
        ),
        tolerance=2,
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.90",
        (
            "/0//UQApAAAAAAAoAAAAIAAAAAAAAAAAAAAAKAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAH/XAATQGBoaHBoaHBoaHBoaHBo"
            "aHD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/kAAKAAAAAARRAAH/k8H4AYALu/nAPqAo/kEgfmBABcsFop+X"
            "ABfH8g8fyFR/gIADB2VDTif7C4z6utU6vMwGYQrvkbC824C/x/I9D9h2D9hwJ0Ny/MGsYavoUByuPzw2KIZYn4Mw3OmcADtmRAtkFdnt"
            "FiW4SJ0t3YnyW78DzkVwkmPyvD/HRHWHuBglUgQdNOiYJaJjN0/w4mbgrguuPiLHv6gGmga/w/ZTh+y5A/NBFOVqYwWIfDZ4bnqpK6Kj"
            "3mnzwuTR2Pipyuz9itTDeYAJMDS6okRILc5KmnRn4n6g7RemTP3HHnijLkb90MtxmHGsMes9fct/qSUL0JQTVII5batNvwyR50ax23DJ"
            "3NXDoJSp1wSJtlFu8oLfNO/zUHdvnPVvMT0mwFHj2bI8PJKbXZxUvkbmwR+EH+Hk1ylhNmHz01hMDLczpPOfZDwes51NFttbAI8J8gu8"
            "VRBgfxLIWAifIvKMvSEc65CedZcF7nOUuhrP5g2Ydx7GxymHJr70DZTKZr/Ib8gYC4oMYgbPiINJz269UltqCCxGRCxBw/a54ftfEP5s"
            "YBTotP8U3/88ziF8T0m8GCqX6WfSqbdVx9dL9Xyc9s1FdhZ68WxKpLTBMNaqEE1sbqEFq1xFnZGSm9cm1PIaPIGq/OUDhHOF9c8UBrPn"
            "4g2Jt2KsGz77fv8RZA+hXHf6mYrnZqgdbhRDPwYs3Dz31Pt6d1unRVvrG9C43v54sEu7GuF8vH71wAZ3GpPZ5LsoYWwk1O9Cjqb3O/aX"
            "tyHQtA4C9nWR7wvCoQV8rLdqCaT8CdzqchGEdCrYZ+W3+W/eFTDF9orltaKHhqbOsJcjgRf6+dptwhyShFVj6yksCwgKU7feXz2vzRTo"
            "srgIbbp+bP7a/zzSQ1Z9pJMWxMNpkbUT22RkNzRoOnBDoq91ygOVJu1Ciy2Yug6hjhqCI8z8lyowPgQbkdtsw+oGWsdUwmCLwCWwxFyk"
            "spz6EYCtoywMwh18NudtIEI2GJ/aw3uF4xs/uzSvUarIV+afw7Lj7DQstwymZl+lm7NeAIfydyEPLwhkgKnVYg1InNwE6SPwvSRnj/W7"
            "7dvx3JNwd2lUYHkM1aGM0xcvenLPGtE+OjiwFonAGLx5Egf0FKf2bNP8N0jonkdgNjdgCdz1v1dNKP4Y9zfApYGcfA3zSrUfZtB5DQvD"
            "Kx1T06PZ6xV1yrbUvrgKilokq3QVlrcXXQlZRblGaCYcqmfHN4pTv6aePsyGRqS6pzfnAiZKkoDFOn9rfC3JlV9G+p7WkEEHPGG+MEMT"
            "39GbOK/STOSI7DjQRGD6UzFd4MQ5K5iBhWDqxrxoLAVLtKr0ulG8e1JLjnYbYFbqYXLNF84JIT27TdMQcFfmQsk21Gig5D/+X8w085xl"
            "PU5KR0iMcI+OgZFLiGlTND1malfAUZBnw/9pir9IRSJ+fejDfVyiBTWcp1QN4hOTga30grph/9k="
        ),
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.91",
        (
            "/0//UQApAAAAAAAoAAAAIAAAAAAAAAAAAAAAKAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAD/XAAjQpcglvCW8JbAjwCPAI7g"
            "h1CHUIdocAVwBXBHd9N303di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4y/5AACgAAAAACqgAB/5PAf2BADBI1"
            "B8APyAoH/AWAfwBABb8JhUWrfwF8wf8BEP7BkP4BwAMIjgH7x+YbC0a1AENyEb3MVIjMCvBQKkilFMH6jkH6jcB94uAnPxkreSkYw1dB"
            "vq7RsFekYiXPYpHSzknEEFJ0Gn56xwoXpyFwdV9oGxTjp4d123XxqSapLJw1JT07XjEWT9B1+PCNW53Kfz9Sb6yIQSvB+J1D9EaB9xKA"
            "FOVqYwClKgDZFXkcJf48pUG2dypTeEFvhP9AcsJpFEzZ36nWve6D3BDYSILpJF9CUXpeCz+j2LWGRlLtz3RBCLo8uoyYVmIEAuG9/Oi0"
            "cJceVpDfJZ9L5bLiuTL0/IyjIl+Ww4oiuhz9+w3r8imp4rnKgiZvNJnvXMqykeKZe8QSyAVnHGZ6DWuC3FEUQZBoHi0vju+rIvo9U0YV"
            "l7zTEvWR+ut7wfgqQfjREP0bgBTny0vlf0vuxZ5PogVhm0BCBwpZEbFRia5zO9yQOkwBYRzaRp05wliXUWbMsvPctZknZTcaONdbJSCb"
            "PuJxdxIxHPjgEroegQLylg3GqVYybXZLnRTostoRnhyqgZxqQon+TxALwmQOCKRo2Oo5xDmkQs5Zr6CJ0uuMBUalzLoafb6fWf9GQlvk"
            "1cuIGnKD1K7O/YsDgeLxUtuC7/Zyi9nbX5/M53GoCRvcny/0j+jPmmJ3iSEa3K+pUfOWLcqZ99wMKmpzYz4P5owvL9cY2L2utCK1tca+"
            "YlUHjCa+ujokeow5los4czf8dlFi5m9Leuf5Jqol/a77kzOxNG4xF8FGaX/uRuvezkFBVFTxLzqeiehml59V5h/xzC9DMX3IZ3SLLEzY"
            "LjMyspRMT3Y8ffhAAz7atUiCs5OWHmYOIVhx8f9LY9wr3Zd3vv/ZAA=="
        ),
        tolerance=6,
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.201",
        (
            "/0//UQApQAAAAAAoAAAAIAAAAAAAAAAAAAAAKAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQ"
            "kJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAABSEAAf+TwAAqAGXvO/EBQjQAwAASwAATwAASgNcAh3QA"
            "k3D9AwF0AIgCB3QAwAAVMAAFdAABVOL7eBlJAYC0APdEY0cESOHMADIBvZYATSpzWuo2Aca0AMAAF0cAAF0UAAF0APBUh3BSZ9VGU2ml"
            "Ih7wMz86NPZK3ZHJJsMFnAuYLxDA0zoANt6CcKYxqBG5oshzOPThXTAXCNEdL2oc9DuSIxvGMBOZAIk5Qd00W4WCGPkC1znZdRj8fOGM"
            "TPH+Bw0UbwhAEbkAwAAXscAAF7fAABejgEr8Yg8fXAHV9N7t9+f7McRHCA6YrXS4nS1vtio5GG81g4wx8rxrcfRUgBXgCwPMaIKUnWly"
            "RUVfVVadF6PVIIHzX7uyXRRTcKRwYP0CcpE6kSRi5ixpUqWpEggAAAgAwFM3Ae4NDJAApgHu8Aj0J1kR1xUkCBYWCgXnBTVn2fcYFuYa"
            "NGTC6B0hAycFBjm+TxYvvgoPNtVKFTapBSI93hdgJAW/ntOn/gu4SImMu5yLR3QVSrGpkRkiRUiRQIqFWgA4AAEZAAAiiMQEAAQEQAM7"
            "AdUJgJCACBp02UUaFmbslzVigUabBNJMIMmDCxWQ0SRBhy8pqdhK4wBObEIiVhDh0wAlUipEigf0QGkOoeLyKIBFB1FA6zcBwAAv0RgA"
            "Bfp5AAC+0OTdowEHFFGIrZRuQqONXa/HfNR1u58LsfC47kGGhCYggEeAWWIDWGMX0dc/1VyFiHBKGUSk4q72EPeKLR8mRJ33zDsqgzCi"
            "brZq6+GlEvr997j3eeyTGCPMIi9tgcUhoHoq+07HSaR8cvx1x/5mIkAoSzxDUzhEcugoYv0VNnWS7oyIgwZozcRad7VSbf2XKO+kEVY5"
            "aZwwNgvwmiOobrRmWDvm3hZte1nJqTG0zXEGUcicMwohAw0bifQVHvExHl0zUwFycIdCgwz2AAZIAARdu1Tjsir1ncvXeEkgMsoFIGVK"
            "VQURiAAANZ3MKrazsIW1k5SOJFAskoVM4KRyIMBEaYUWqRaNFBSRCmxg4DM2BNYRsI0Ehi0QGODgAoiS4J227Nny7F0QUzzKCUQAmG6Q"
            "KNwCLeLjJe6oZkBwkbNJl5RZEXFIDpRYk9ehfJf7GtVZXqx8QyIAsgaP2B4tAcvgWeW0zRzFFXrfZsH3XEk+Xx9ioKDic7qGMTbDQ0jT"
            "tGc0X584FuiKWEmDDcmMKVFKIRIRCy/wADHGOYtcK9OA6jkyICsuJZyhI/VZ/j5rkB4hl+SsQyLgGowCegggcSZn+QJtou+0ePTLKKu6"
            "Jf8rk8K5okF7kYABhRoV/10oRaMajU0u6xr9Kg2MQqi44SoHtxCCOqwXuAGyMLpcDJFB8ADkVJkUDyA/cigaSSN4Rr3jsSvr1yAyggRB"
            "ykcyIg0gJLBjgAAavDEr3CNedikCcoiCSAnMksHKSIYAAANUlVZkU1pGscgVY4GrPATrHVQooLULZHXUnZDAyRoJCGGGGXIOMvRRgLXA"
            "CXM1R+QwkCoDzOxt2WsOHiDDwLTkyjDAxjo6SV+kqEEYBWodwX18lUrG2NZHhzyZEP7aizOdSrIT7ZGLc5GQEZru69oW0Lr5bWosBCgC"
            "GKi4LD6AvU+DcrfwiotOnXUFNMC8SyhiVMso3YoOIAQB4PcjDLgFkrLEC+FygZTYhVCT/3LwSnFShFIHSOhRokvdtLVIZQqre+YpnG4r"
            "eezxmwdxUQAxS1um9TtnykhSxxigmzME/9k="
        ),
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.202",
        (
            "/0//UQApQAAAAAAoAAAAIAAAAAAAAAAAAAAAKAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQ"
            "kJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv9VAAoAYAAAAAAFIf+QAAoAAAAABSEAAf+TwAAqAGXvO/EBQjQAwAAS"
            "wAATwAASgNcAh3QAk3D9AwF0AIgCB3QAwAAVMAAFdAABVOL7eBlJAYC0APdEY0cESOHMADIBvZYATSpzWuo2Aca0AMAAF0cAAF0UAAF0"
            "APBUh3BSZ9VGU2mlIh7wMz86NPZK3ZHJJsMFnAuYLxDA0zoANt6CcKYxqBG5oshzOPThXTAXCNEdL2oc9DuSIxvGMBOZAIk5Qd00W4WC"
            "GPkC1znZdRj8fOGMTPH+Bw0UbwhAEbkAwAAXscAAF7fAABejgEr8Yg8fXAHV9N7t9+f7McRHCA6YrXS4nS1vtio5GG81g4wx8rxrcfRU"
            "gBXgCwPMaIKUnWlyRUVfVVadF6PVIIHzX7uyXRRTcKRwYP0CcpE6kSRi5ixpUqWpEggAAAgAwFM3Ae4NDJAApgHu8Aj0J1kR1xUkCBYW"
            "CgXnBTVn2fcYFuYaNGTC6B0hAycFBjm+TxYvvgoPNtVKFTapBSI93hdgJAW/ntOn/gu4SImMu5yLR3QVSrGpkRkiRUiRQIqFWgA4AAEZ"
            "AAAiiMQEAAQEQAM7AdUJgJCACBp02UUaFmbslzVigUabBNJMIMmDCxWQ0SRBhy8pqdhK4wBObEIiVhDh0wAlUipEigf0QGkOoeLyKIBF"
            "B1FA6zcBwAAv0RgABfp5AAC+0OTdowEHFFGIrZRuQqONXa/HfNR1u58LsfC47kGGhCYggEeAWWIDWGMX0dc/1VyFiHBKGUSk4q72EPeK"
            "LR8mRJ33zDsqgzCibrZq6+GlEvr997j3eeyTGCPMIi9tgcUhoHoq+07HSaR8cvx1x/5mIkAoSzxDUzhEcugoYv0VNnWS7oyIgwZozcRa"
            "d7VSbf2XKO+kEVY5aZwwNgvwmiOobrRmWDvm3hZte1nJqTG0zXEGUcicMwohAw0bifQVHvExHl0zUwFycIdCgwz2AAZIAARdu1Tjsir1"
            "ncvXeEkgMsoFIGVKVQURiAAANZ3MKrazsIW1k5SOJFAskoVM4KRyIMBEaYUWqRaNFBSRCmxg4DM2BNYRsI0Ehi0QGODgAoiS4J227Nny"
            "7F0QUzzKCUQAmG6QKNwCLeLjJe6oZkBwkbNJl5RZEXFIDpRYk9ehfJf7GtVZXqx8QyIAsgaP2B4tAcvgWeW0zRzFFXrfZsH3XEk+Xx9i"
            "oKDic7qGMTbDQ0jTtGc0X584FuiKWEmDDcmMKVFKIRIRCy/wADHGOYtcK9OA6jkyICsuJZyhI/VZ/j5rkB4hl+SsQyLgGowCegggcSZn"
            "+QJtou+0ePTLKKu6Jf8rk8K5okF7kYABhRoV/10oRaMajU0u6xr9Kg2MQqi44SoHtxCCOqwXuAGyMLpcDJFB8ADkVJkUDyA/cigaSSN4"
            "Rr3jsSvr1yAyggRBykcyIg0gJLBjgAAavDEr3CNedikCcoiCSAnMksHKSIYAAANUlVZkU1pGscgVY4GrPATrHVQooLULZHXUnZDAyRoJ"
            "CGGGGXIOMvRRgLXACXM1R+QwkCoDzOxt2WsOHiDDwLTkyjDAxjo6SV+kqEEYBWodwX18lUrG2NZHhzyZEP7aizOdSrIT7ZGLc5GQEZru"
            "69oW0Lr5bWosBCgCGKi4LD6AvU+DcrfwiotOnXUFNMC8SyhiVMso3YoOIAQB4PcjDLgFkrLEC+FygZTYhVCT/3LwSnFShFIHSOhRokvd"
            "tLVIZQqre+YpnG4reezxmwdxUQAxS1um9TtnykhSxxigmzME/9k="
        ),
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.4.203",
        (
            "/0//UQApQAAAAAAoAAAAIAAAAAAAAAAAAAAAKAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAAJf9SAAwAAgABAAUEBEAA/1wAIyKPdI9F"
            "j0WPF4dch1yHPX+qf6p/wmg1aDVoeGAaYBpvv/9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAAFLAAH/k8AAKgB7+Dn5AUI0"
            "AMAAJYAATQAAlPMAx3QA4xkAYjQA6gCHdADAAFRAAFbAAFSAFKlBygDAtACfeSexRd2IACEBvZYAEdkAle4BBrQAwAC2IABbEAAtIEBF"
            "Psdli81ucoEVivEB9wv8I4gvZNM5AGaJxwHRwziSm28WMPxgyPcOqSOb+ROYAKk6DrJoSkDFyfwHOEcA36M4AMAC2oAF1UACqOwAExmg"
            "/pigAYb7CjsIjyg3BjEZ5zyAB38AYAjgfoBxoCk7FCG3aPgDJfJh+kAPggAV8EACvdZdZRN0zdNO1OwINNcBFUD+fuQIuYDXAMAFpwAX"
            "SQAK0G4ofBSIf48eEAEa3+W/3+AA3gBoGQwNIQMRq8EDI+EiNgS4f/mgZU87JHp5E+7JHp5EygAQ1AEVwCBQ/n/64Aj1gNgA/9k="
        ),
        tolerance=40,
    ),
    GoldenFrame(
        "1.2.840.10008.1.2.5",
        (
            "AgAAAEAAAAASBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAUACAoLDAz8DRkMCwoJ"
            "CAcGBQQDAgIBAQICAwQFBgcICQoLDP4NBQcICgoLDP0NCgwMCwoJCAcGBQQD+wIKAwQFBgcICQoLDAz/DQQHCAkKC/sMCgsLCgkIBwYF"
            "BAMD/QIKAwMEBQYHCAkKCwv+DAgHCAkKCgsLDAz+CwkKCgkIBwYFBQQE/QMJBAQFBQYHCAkJCv4LAAwDBwgJCfkKBgkJCAgHBgb+Bf0E"
            "/gUGBgYHCAgJCf0KAAf+CPgJ/gj+B/0GAQUF/AYBBwf+CPwJ/gf2COwH/Aj8B/oG/AfzCPwH/QYBBwf+BvoF/gYDBwcICP4J/Qr+Cf4I"
            "AwcHBgb9BQQHBwYFBfoECAUFBgcICAkKCvsLCAoKCQgIBwYFBf0EBAcGBQUE+gMJBAUGBwgJCQoLC/0MCgsLCgoJCAcGBQQE/gMFBwYF"
            "BAMD/AILAwQFBQcICQoLCwwM/g0KDAwLCgkIBwYFBAP+AgQHBgUEA/sCCgMDBAUGCAkKCwwM/Q0KDAwLCgkIBwUEBAP+AgQHBgUEA/sC"
            "CgMDBAUGCAkKCwwM/Q0KDAwLCgkIBwUEAwP+AgUHBgUEAwP8AgoDBAQFBwgJCgsLDP0NCgwMCwoJCAcGBQQD/gIEBwYFBQT+AwAC/gMI"
            "BAUGBwgJCQoL+wwJCwoKCQgHBgUEBP4DBAcHBgUF/gQAA/4ECAUFBgcICAkKCvsLCAoKCQgIBwYFBf4EAAMDBwcGBvkF/gYFBwcICAkJ"
            "+wr+CQUICAcHBgb9Bf0H+Ab9B/sI/gn8CPwH/Qb8B/sI5wf+CAAH/gj5Cf0I/gf3Bv0H/gj9CQQHCAgJCfoKBgkJCAgHBwb+Bf0E/gUG"
            "BgYHCAgJCf0KBAcICQoK+gsJCgkJCAcGBQUEBP0DCQQEBQUGBwgJCQr9CwQHCAkKC/sMCwsLCgkIBwYFBAQDA/4CCgMDBAUGBwgJCgsL"
            "/gwFBwgKCgsM/Q0KDAwLCgkIBwYFBAP7AgoDBAUGBwgJCgsMDP8NBQcICgsMDPwNCQwLCgkIBwYFBAP+AgwBAgIDBAUGBwgJCgsM/g0F"
            "BwgKCwsM/A0JDAsKCQgHBgUEA/sCCgMEBQYHCAkKCwwM/w0EBwgJCgv+DAAN/gwJCwoJCAcGBQQDA/0CDQMDBAUGBwgJCgsLDAwNBgcI"
            "CQoKCwv+DAoLCwoKCQgHBgUFBPsDCgQFBQYHCAkKCgsL/wwDBwgJCf4K/gv+CgcJCAgHBgYFBfsEBwUFBgYHCAgJ/gr/CwAH/gj4Cf4I"
            "AQcH/Qb9Bf0GAQcH/gj8CQEHB/QI7gf8CAAPACcA+xoiBMFKkqWBIJDJz8Wmc1MzOWOxOvr7LqdHHBcsU36ouKx4FXmuJ8/sCf/mlxVi"
            "e1H0Z6q8uaJ+XUtWgdxmJy1Yx2g/Lj1Te5KdhFLtT3Yn0NLVu3wjn+X10nb6SHGEiYV/iq7tUuy0q9tG1JJpXF1nbVgu5HTI8yfPq3o8"
            "423TBBn7s0OvA0JljbzvLIsVtYqJtwGAG82heE4q76U8qvMSJ9BtDp4Reb3q+Om1YPRx2UCl/mXcbAfRrqjFB13PVOyPKMZi4lai5PQn"
            "zjKD3CVdgqKnoIBMCcRrFLhVAq5qNhD+/QUsZ6LuS6sJZroBS3idqyfV3/0MGyw3ODU5LCETAvfcxLCfjXx4b2ZraG17iKOuxtj2/xUp"
            "Lzo9J9OcZzkT7tvMwsne/BZAcqnaFEZ4nLbR3NzSuaBzTR/rrXlMHv3byb8nz0/ZcxPGi2NicZzWJo/9ePJs31Kr7x49OyfyrlzsgAGB"
            "EJ045KF3WyfVGGO+LrtlLyU+dNBP5JNFBL1yDJ4BVXh2UQ2pHYDSIF2k/WHkhkMjJ9Hk+ypt3WsrIT2J/qBnPCsaB92pXeVLd3hL8nHB"
            "ARwwRF19vROTRyMn08Czve5BwXpjiuZqJgb5DSQ1NyPnhfIzMgWXAzZPUT0tISM9fvGTbCfUpoiGqu1sGQQkih3ozdr/KE5hWjDcVpOU"
            "W/FHdX5ySiP78AM4mTYCJ8uhh4mm5GINAR6FFOLT3vorSmZjN+RflZdk8VSBgm1NIfrw/iqWLAEn1LqqtOIrrmdYe9VcGPj7CR04Pi/3"
            "kww/QRWnDkFeVkktHxw5cOSBUyfN3OwVYcdVFv4jbOuLUzEhFgTuxXIAXpWfbAmJ2wkhOT1VbaUCeCIFJ9USTaEOmEIM+RpRsjjRiUoE"
            "xX0jtiZ6naV/NsE5m+QdYaHmRcJdFfYny0jJU+6eXDs1PnS4CXvsdfh28mfME0xjaUsk1XoBhgOCA4YXwXJDNSfUjlEd8MKsmJWdr9D/"
            "K2um3iRZjbze+gUKBOzJk14q765pNQDUsp2YJ9PV6Oz2AAkBCAIH/Prx3drPxLywqaCXm5mbo6aqsr3H0OTu8PoHCgkn1SF5xQIxWXN2"
            "aU4t7atdD7JgFM6MXz4qKzxUhr8IU679WKTlIFBqdCfKaPuE8lCdxtK2i0LZWtA6nQ18+o80+s/X7yd+5XD6ii2+RskrgrrJJ9OkaiTE"
            "Sqvr9teYKqL2OWiMwPhIpjDfsKfXIpwx46V1RhvaiBeN2fMnz8/BrHIPfcbWvWniNm17iYmEl7sCZATKzf1X6Z93amVpZEshz1et1SfO"
            "6wH61YoOYG9I6luhtK6bfmRPYpLmczUybtR2RzQ4UnOUk39H3TxqJ9X4FCECwECUrYYli8fSx6N1TDg3YbdAAfosn0seGixSep2vqnUP"
            "eaknzvEHDO6dInKEYghxqL+0o3hWS0x30FwaHVLGZjEpOVJ1k52PXfdXhSfT39bFkTiz+wjrjAhUf5SMe3h5l9g/0Z2YxjO/gF1eXXB2"
            "YTrxf94EJ9WvjEj2huglNBrXZcsSSXCIrd4bd/mdZ2qY5GoHxJFsTTEDt0/LGzUny34VtS6X5hQgB9qDEYvyTZz3WsdO66OBe6TjPrlC"
            "34kw03IBcc8JISfSO5/4P4O0ytbFqHAs2YMYsVDjjkUO483I4QA8hdg5pxFtyiBmpsHZJ9PqCCRCWGRmbWlcSDYjBODKqIlqWkg2OTQ1"
            "QlRviqfE5v0cN0laaP8="
        ),
    ),
)
