"""The units of measure and money that answers may have, in small tables."""

# Dimensions and factor: names of the unit. Symbols keep their case, words do not.
NAMED = """
m 1: mtr 公尺
m 1000: kms KM 公里
m 1/100: cms CM 公分 センチ
m 1/1000: mms MM ミリ
m 1/1000000: micron um
m 1852: nmi 海里
m 1609344/1000: mi mile マイル 마일 英里
m 9144/10000: yd yard ヤード 码
m 3048/10000: ft foot feet フィート 英尺
m 254/10000: inch inches インチ 英寸
g 500: 斤
g 1000: kgs KG kilo 公斤 キロ
g 1000000: tonne ton tons 吨 トン 톤
g 45359237/100000: lb lbs pound 磅 ポンド
g 45359237/1600000: oz ounce
s 1: sec secs 秒钟 秒間
s 60: min mins minute 分 分钟 分間 분
s 3600: h hr hrs hour 小时 小時 時間 钟头 시간
s 86400: day days 天 日 日間 일 일간
s 1209600: fortnight
s 604800: week weeks wk 周 週間 주일
month 1: month months 个月 ヶ月 か月 개월
month 1200: century centuries 世紀 世纪 세기
month 120: decade
month 12: year years yr yrs 年間
m^3 3785411784/1000000000000: gallon gal ガロン 加仑
m^3 946352946/1000000000000: quart
m^3 473176473/1000000000000: pint パイント 品脱
m^3 1/1000000: cc
m^2 10000: ha hectare 公顷 ヘクタール
m^2 40468564224/10000000: acre エーカー 英亩
m^2 1: 平米
deg 1: ° degree degrees deg 度 도
rad 1: rad rads radian ラジアン 弧度
°C 1: °C ℃ celsius
°F 1: °F ℉ fahrenheit
A 1: amps
g m^2 s^-3 A^-2 1000: ohms
g m^-1 s^-2 101325000: atm atmosphere 气压 大气压 気圧 기압
g m^-1 s^-2 100000000: bar
g m^-1 s^-2 133322387415/1000000: mmHg
dB 1: dB decibel 分贝 デシベル 데시벨
rpm 1: rpm
bpm 1: bpm
pixel 1: px pixel ピクセル 像素 픽셀
byte 1: bytes
byte 1000: KB
usd 1: $ ＄ USD US$ dollar dollars buck bucks 美元 ドル 달러
usd 1/100: cent cents ¢
eur 1: € EUR euro ユーロ 欧元 유로
gbp 1: £ GBP
gbp 1/100: pence
inr 1: ₹ INR Rs rupee rupees
inr 1/100: paise
jpy 1: ¥ JPY yen 円 엔 日元
cny 1: CNY RMB yuan 元 人民币
cny 1/10: 角
krw 1: ₩ KRW won 원
"""
# Dimensions and factor | symbols | their usual prefixes | words, which take all prefixes.
PREFIXED = """
m 1 | m | n µ m c d k | meter metre 米 メートル 미터
g 1 | g | n µ m k | gram gramme 克 グラム 그램
s 1 | s | p n µ m | second 秒 초
A 1 | A | n µ m k | amp ampere 安培 アンペア 암페어
K 1 | K | m | kelvin
mol 1 | mol | µ m k | mole 摩尔 モル
m^3 1/1000 | L l | µ m c d k | liter litre 升 リットル 리터
g m s^-2 1000 | N | m k M | newton 牛顿 ニュートン 뉴턴
g m^2 s^-2 1000 | J | m k M G | joule 焦耳 ジュール 줄
g m^2 s^-2 4184 | cal | k | calorie 卡路里 カロリー 칼로리
g m^2 s^-2 3600000 | Wh | k M G |
g m^2 s^-3 1000 | W | µ m k M G T | watt 瓦 ワット 와트
g m^-1 s^-2 1000 | Pa | h k M G | pascal 帕 帕斯卡 パスカル 파스칼
s^-1 1 | Hz | k M G T | hertz 赫兹 ヘルツ 헤르츠
A s 1 | C | n µ m | coulomb 库仑 クーロン
g m^2 s^-3 A^-1 1000 | V | µ m k M | volt 伏 伏特 ボルト 볼트
g m^2 s^-3 A^-2 1000 | Ω | m k M G | ohm オーム 欧姆 옴
g^-1 m^-2 s^4 A^2 1/1000 | F | p n µ m | farad 法拉 ファラド
eV 1 | eV | k M G | electronvolt
byte 1 | B | k M G T | byte バイト 字节 바이트
"""
PREFIXES = """
T 1000000000000: tera テラ 테라
G 1000000000: giga ギガ 기가
M 1000000: mega 兆 メガ 메가
k 1000: kilo 千 キロ 킬로
h 100: hecto 百 ヘクト 헥토
d 1/10: deci 分 デシ 데시
c 1/100: centi 厘 センチ 센티
m 1/1000: milli 毫 ミリ 밀리
µ 1/1000000: micro 微 マイクロ 마이크로
n 1/1000000000: nano 纳 ナノ 나노
p 1/1000000000000: pico 皮 ピコ 피코
"""
