"""The facts of the demo: real countries, each with four things one can look up.

One line a country: name | capital | continent | currency | language. The name carries
its article ("the Gambia") so that it reads well inside a sentence. The continent is
that of the United Nations' geoscheme; the currency is the plain unit ("peso", not
"Chilean peso"); the language is one that is widely spoken there, not the only one.
This is a selection: places whose capital or continent is disputed or shared between
cities are left out, because a demo has to have one right answer to every question.
"""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    """One country and what the demo knows about it."""

    name: str
    capital: str
    continent: str
    currency: str
    language: str


_TABLE = """
Algeria | Algiers | Africa | dinar | Arabic
Angola | Luanda | Africa | kwanza | Portuguese
Benin | Porto-Novo | Africa | franc | French
Botswana | Gaborone | Africa | pula | Tswana
Cameroon | Yaoundé | Africa | franc | French
Chad | N'Djamena | Africa | franc | Arabic
Egypt | Cairo | Africa | pound | Arabic
Ethiopia | Addis Ababa | Africa | birr | Amharic
Gabon | Libreville | Africa | franc | French
the Gambia | Banjul | Africa | dalasi | English
Ghana | Accra | Africa | cedi | English
Kenya | Nairobi | Africa | shilling | Swahili
Liberia | Monrovia | Africa | dollar | English
Libya | Tripoli | Africa | dinar | Arabic
Madagascar | Antananarivo | Africa | ariary | Malagasy
Malawi | Lilongwe | Africa | kwacha | Chichewa
Mauritania | Nouakchott | Africa | ouguiya | Arabic
Mauritius | Port Louis | Africa | rupee | Creole
Morocco | Rabat | Africa | dirham | Arabic
Mozambique | Maputo | Africa | metical | Portuguese
Namibia | Windhoek | Africa | dollar | English
Nigeria | Abuja | Africa | naira | English
Rwanda | Kigali | Africa | franc | Kinyarwanda
Senegal | Dakar | Africa | franc | Wolof
Sierra Leone | Freetown | Africa | leone | English
Somalia | Mogadishu | Africa | shilling | Somali
South Sudan | Juba | Africa | pound | English
Sudan | Khartoum | Africa | pound | Arabic
Tanzania | Dodoma | Africa | shilling | Swahili
Togo | Lomé | Africa | franc | French
Tunisia | Tunis | Africa | dinar | Arabic
Uganda | Kampala | Africa | shilling | English
Zambia | Lusaka | Africa | kwacha | English
Armenia | Yerevan | Asia | dram | Armenian
Azerbaijan | Baku | Asia | manat | Azerbaijani
Bahrain | Manama | Asia | dinar | Arabic
Bangladesh | Dhaka | Asia | taka | Bengali
Bhutan | Thimphu | Asia | ngultrum | Dzongkha
Cambodia | Phnom Penh | Asia | riel | Khmer
China | Beijing | Asia | yuan | Chinese
Georgia | Tbilisi | Asia | lari | Georgian
India | New Delhi | Asia | rupee | Hindi
Iran | Tehran | Asia | rial | Persian
Iraq | Baghdad | Asia | dinar | Arabic
Japan | Tokyo | Asia | yen | Japanese
Jordan | Amman | Asia | dinar | Arabic
Kazakhstan | Astana | Asia | tenge | Kazakh
Kuwait | Kuwait City | Asia | dinar | Arabic
Kyrgyzstan | Bishkek | Asia | som | Kyrgyz
Laos | Vientiane | Asia | kip | Lao
Lebanon | Beirut | Asia | pound | Arabic
Malaysia | Kuala Lumpur | Asia | ringgit | Malay
the Maldives | Malé | Asia | rufiyaa | Dhivehi
Mongolia | Ulaanbaatar | Asia | tugrik | Mongolian
Myanmar | Naypyidaw | Asia | kyat | Burmese
Nepal | Kathmandu | Asia | rupee | Nepali
North Korea | Pyongyang | Asia | won | Korean
Oman | Muscat | Asia | rial | Arabic
Pakistan | Islamabad | Asia | rupee | Urdu
the Philippines | Manila | Asia | peso | Filipino
Qatar | Doha | Asia | riyal | Arabic
Saudi Arabia | Riyadh | Asia | riyal | Arabic
South Korea | Seoul | Asia | won | Korean
Tajikistan | Dushanbe | Asia | somoni | Tajik
Thailand | Bangkok | Asia | baht | Thai
Turkey | Ankara | Asia | lira | Turkish
Turkmenistan | Ashgabat | Asia | manat | Turkmen
the United Arab Emirates | Abu Dhabi | Asia | dirham | Arabic
Uzbekistan | Tashkent | Asia | som | Uzbek
Vietnam | Hanoi | Asia | dong | Vietnamese
Yemen | Sanaa | Asia | rial | Arabic
Albania | Tirana | Europe | lek | Albanian
Austria | Vienna | Europe | euro | German
Belarus | Minsk | Europe | ruble | Russian
Belgium | Brussels | Europe | euro | Dutch
Croatia | Zagreb | Europe | euro | Croatian
the Czech Republic | Prague | Europe | koruna | Czech
Denmark | Copenhagen | Europe | krone | Danish
Estonia | Tallinn | Europe | euro | Estonian
Finland | Helsinki | Europe | euro | Finnish
France | Paris | Europe | euro | French
Germany | Berlin | Europe | euro | German
Greece | Athens | Europe | euro | Greek
Hungary | Budapest | Europe | forint | Hungarian
Iceland | Reykjavík | Europe | krona | Icelandic
Ireland | Dublin | Europe | euro | English
Italy | Rome | Europe | euro | Italian
Latvia | Riga | Europe | euro | Latvian
Lithuania | Vilnius | Europe | euro | Lithuanian
Malta | Valletta | Europe | euro | Maltese
the Netherlands | Amsterdam | Europe | euro | Dutch
North Macedonia | Skopje | Europe | denar | Macedonian
Norway | Oslo | Europe | krone | Norwegian
Poland | Warsaw | Europe | zloty | Polish
Portugal | Lisbon | Europe | euro | Portuguese
Romania | Bucharest | Europe | leu | Romanian
Russia | Moscow | Europe | ruble | Russian
Serbia | Belgrade | Europe | dinar | Serbian
Slovakia | Bratislava | Europe | euro | Slovak
Slovenia | Ljubljana | Europe | euro | Slovene
Spain | Madrid | Europe | euro | Spanish
Sweden | Stockholm | Europe | krona | Swedish
Switzerland | Bern | Europe | franc | German
Ukraine | Kyiv | Europe | hryvnia | Ukrainian
the United Kingdom | London | Europe | pound | English
the Bahamas | Nassau | North America | dollar | English
Belize | Belmopan | North America | dollar | English
Canada | Ottawa | North America | dollar | English
Costa Rica | San José | North America | colón | Spanish
Cuba | Havana | North America | peso | Spanish
the Dominican Republic | Santo Domingo | North America | peso | Spanish
El Salvador | San Salvador | North America | dollar | Spanish
Guatemala | Guatemala City | North America | quetzal | Spanish
Haiti | Port-au-Prince | North America | gourde | Creole
Honduras | Tegucigalpa | North America | lempira | Spanish
Jamaica | Kingston | North America | dollar | English
Mexico | Mexico City | North America | peso | Spanish
Nicaragua | Managua | North America | córdoba | Spanish
Panama | Panama City | North America | balboa | Spanish
Trinidad and Tobago | Port of Spain | North America | dollar | English
the United States | Washington | North America | dollar | English
Argentina | Buenos Aires | South America | peso | Spanish
Brazil | Brasília | South America | real | Portuguese
Chile | Santiago | South America | peso | Spanish
Colombia | Bogotá | South America | peso | Spanish
Ecuador | Quito | South America | dollar | Spanish
Guyana | Georgetown | South America | dollar | English
Paraguay | Asunción | South America | guarani | Spanish
Peru | Lima | South America | sol | Spanish
Suriname | Paramaribo | South America | dollar | Dutch
Uruguay | Montevideo | South America | peso | Spanish
Venezuela | Caracas | South America | bolívar | Spanish
Australia | Canberra | Oceania | dollar | English
Fiji | Suva | Oceania | dollar | Fijian
New Zealand | Wellington | Oceania | dollar | English
Papua New Guinea | Port Moresby | Oceania | kina | Tok Pisin
Samoa | Apia | Oceania | tala | Samoan
Tonga | Nuku'alofa | Oceania | pa'anga | Tongan
"""

COUNTRIES: tuple[Country, ...] = tuple(
    Country(*(field.strip() for field in line.split("|"))) for line in _TABLE.strip().splitlines()
)
